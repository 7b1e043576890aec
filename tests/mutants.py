# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Planted faults, and for each the test that must fail. `make mutants` plants them; test_mutants.py checks in every run
of the tests that this list fits the code.
"""

from typing import NamedTuple


class Mutant(NamedTuple):
    """A planted fault: `text`, which `file` holds once, becomes `fault`, and `test` must fail."""

    name: str
    file: str
    text: str
    fault: str
    test: str


MUTANTS = [
    # The block and its fast path.
    Mutant(
        "jitter below the rounding of the Gram matrix",
        "modeling/fast_llm_layer.py",
        "jitter = 2 * info.eps * len(gram) * gram.diagonal() + info.tiny",
        "jitter = 1e-14 * gram.diagonal().mean().expand(len(gram))",
        "tests/modeling/test_inverse_norm.py",
    ),
    Mutant(
        "derivatives of the inverse norm ignore the weight",
        "modeling/fast_llm_layer.py",
        "form = (x @ (weight.mT @ weight) * x).sum(-1)",
        "form = (x @ (weight.mT @ weight).detach() * x).sum(-1)",
        "tests/modeling/test_inverse_norm.py::test_derivatives",
    ),
    Mutant(
        "no second derivatives of attention",
        "modeling/modeling_llm_block.py",
        'uses_sdpa = self._caller.config._attn_implementation != "eager"',
        "uses_sdpa = True",
        "tests/modeling/test_derivatives.py::test_second_derivatives",
    ),
    Mutant(
        "no forward mode without gradients",
        "modeling/fast_llm_layer.py",
        "torch.jit.is_tracing() or forward_ad._current_level >= 0:",
        "torch.jit.is_tracing():",
        "tests/modeling/test_inverse_norm.py::test_same_value_without_derivatives",
    ),
    Mutant(
        "autocast left on in the host's width",
        "modeling/fast_llm_layer.py",
        'with nullcontext() if tokens.device.type == "meta" else torch.autocast(tokens.device.type, enabled=False):',
        "with nullcontext():",
        "tests/modeling/test_inverse_norm.py::test_arithmetic_in_the_hosts_width_ignores_autocast",
    ),
    Mutant(
        "export on a folded route",
        "modeling/modeling_llm_block.py",
        'if is_exporting() or hidden_states.device.type == "mps":',
        'if hidden_states.device.type == "mps":',
        "tests/modeling/test_compile_and_export.py::test_export_leaves_the_plans_in_the_hosts_width",
    ),
    Mutant(
        "hooks on the block see one token",
        "modeling/pretrained_model.py",
        "return not block.config.fast or any(owner not in _FRAMEWORKS for owner in owners)",
        "return not block.config.fast",
        "tests/modeling/test_hooks_on_the_block.py::test_grad_cam",
    ),
    Mutant(
        "random layer equal for all seeds",
        "modeling/llm_layer.py",
        "    layers.apply(llm._init_weights)\n",
        "    with torch.random.fork_rng():\n        torch.manual_seed(0)\n        layers.apply(llm._init_weights)\n",
        "tests/modeling/test_controls.py::test_random_layer_depends_on_the_seed",
    ),
    Mutant(
        "VideoMAE's classifier reads token 1",
        "modeling/modeling_videomae_with_llm_block.py",
        "pooled = hidden_states[:, 0] if self.fc_norm is None",
        "pooled = hidden_states[:, 1] if self.fc_norm is None",
        "tests/modeling/test_videomae_with_llm_block.py::test_classifier_on_the_first_token_without_a_block",
    ),
    Mutant(
        "VideoMAE's block computes token 1",
        "modeling/modeling_videomae_with_llm_block.py",
        "output_tokens = slice(0, 1) if self.fc_norm is None else None",
        "output_tokens = slice(1, 2) if self.fc_norm is None else None",
        "tests/modeling/test_hooks_on_the_block.py::test_videomae_classifier_on_the_first_token",
    ),
    # Reading, saving and loading.
    Mutant(
        "unused tensors of the layer",
        "modeling/llm_layer_reader.py",
        "        if not unused:\n            return\n",
        "        return\n",
        "tests/modeling/test_unused_tensors.py::test_a_tensor_that_the_layer_has_no_place_for",
    ),
    Mutant(
        "integers as weights",
        "modeling/llm_layer_reader.py",
        "if not tensor.is_floating_point() and (target is None or target.is_floating_point()):",
        "if False:",
        "tests/modeling/test_unused_tensors.py::test_integers_are_no_weights",
    ),
    Mutant(
        "stored fingerprint not consulted",
        "modeling/modeling_llm_block.py",
        'expected = config.fingerprint or stored_block.get("fingerprint")',
        "expected = config.fingerprint",
        "tests/modeling/test_changed_folders.py::test_new_configuration_of_another_llm_is_an_error",
    ),
    Mutant(
        "fingerprint not compared",
        "modeling/modeling_llm_block.py",
        "if expected not in (None, fingerprint):",
        "if False:",
        "tests/modeling/test_changed_folders.py::test_changed_llm",
    ),
    Mutant(
        "flipped bit of a saved layer",
        "modeling/pretrained_model.py",
        "if expected is None or block._remembered_digest in (None, expected) or not os.path.isdir(source):",
        "if True:",
        "tests/modeling/test_changed_folders.py::test_flipped_bit",
    ),
    Mutant(
        "missing tensors of a saved host",
        "modeling/pretrained_model.py",
        'promised = "" if saved_class == type(model).__name__ else host',
        'promised = "classifier." if saved_class == type(model).__name__ else "none."',
        "tests/modeling/test_changed_folders.py::test_folder_that_lacks_tensors_beside_the_block",
    ),
    Mutant(
        "saving changes the model's configuration",
        "modeling/pretrained_model.py",
        "        model.config = copy.deepcopy(self.config)\n",
        "",
        "tests/modeling/test_save_load.py::test_saving_from_two_threads",
    ),
    Mutant(
        "configuration stays while a killed save replaces files",
        "modeling/pretrained_model.py",
        "            os.remove(os.path.join(folder, name))\n    if new :=",
        "            pass\n    if new :=",
        "tests/modeling/test_save_load.py::test_save_killed_while_files_are_replaced",
    ),
    Mutant(
        "released videos' default layer",
        "hf_frozen_llm/conversion/videomae.py",
        "layer_index=15",
        "layer_index=31",
        "tests/test_conversion.py::test_default_layer_is_that_of_the_released_code",
    ),
    # Data.
    Mutant(
        "class folders named like splits leak",
        "hf_frozen_llm/data/folders.py",
        "inside = {name: sorted(list_files(folder)) for name, folder in folders.items()}",
        "inside = {name: sorted(f for f in list_files(root) if name in f) for name, folder in folders.items()}",
        "tests/data/test_folders.py::test_a_class_may_have_the_name_of_a_split",
    ),
    Mutant(
        "links of class folders not followed",
        "hf_frozen_llm/data/folders.py",
        "            if entry.is_dir():\n",
        "            if entry.is_dir(follow_symlinks=False):\n",
        "tests/data/test_folders.py::test_links_are_followed",
    ),
    Mutant(
        "hidden folders are classes of pictures",
        "hf_frozen_llm/data/folders.py",
        'return not name.startswith(".") and name != "__MACOSX"',
        "return True",
        "tests/data/test_folders.py::test_hidden_files_are_left_out",
    ),
    Mutant(
        "hidden folders are classes of clouds",
        "hf_frozen_llm/tasks/point_cloud_classification/data.py",
        'for path in folder.iterdir() if not path.name.startswith((".", "__")))',
        "for path in folder.iterdir())",
        "tests/tasks/test_point_cloud_data.py::test_leftovers_are_no_data",
    ),
    Mutant(
        "clouds centred in float32",
        "modeling/processing_point_bert_with_llm_block.py",
        "cloud = cloud.to(torch.float64)",
        "cloud = cloud.to(torch.float32)",
        "tests/tasks/test_point_cloud_data.py::test_coordinates_far_from_the_origin",
    ),
    Mutant(
        "16-bit pictures become white",
        "hf_frozen_llm/tasks/image_classification/data.py",
        "return 0, 2**bits - 1",
        "return 0, 255",
        "tests/tasks/test_image_classification.py::test_more_than_8_bits",
    ),
    Mutant(
        "rotation of videos ignored",
        "hf_frozen_llm/tasks/video_classification/data.py",
        "turn = TURNS.get(frame.rotation % 360)",
        "turn = None",
        "tests/tasks/test_video_files.py::test_frames_are_turned",
    ),
    Mutant(
        "shape of video pixels ignored",
        "hf_frozen_llm/tasks/video_classification/data.py",
        "if pixel_ratio and pixel_ratio != 1:",
        "if False:",
        "tests/tasks/test_video_files.py::test_pixels_become_square",
    ),
    Mutant(
        "clips flipped upside down",
        "hf_frozen_llm/tasks/video_classification/__init__.py",
        "clips.flip(-1), clips)",
        "clips.flip(-2), clips)",
        "tests/tasks/test_video_classification.py::test_half_of_the_clips_are_mirrored",
    ),
    Mutant(
        "all clips of a batch mirrored",
        "hf_frozen_llm/tasks/video_classification/__init__.py",
        "torch.from_numpy(rng.random(len(clips)) < 0.5)",
        "torch.full((len(clips),), bool(rng.random() < 0.5))",
        "tests/tasks/test_video_classification.py::test_half_of_the_clips_are_mirrored",
    ),
    Mutant(
        "crop ratio drawn uniformly",
        "hf_frozen_llm/data/augmentation.py",
        "ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))",
        "ratio = rng.uniform(3 / 4, 4 / 3)",
        "tests/tasks/test_image_classification.py::test_crops_lie_in_the_image_and_cover_what_they_should",
    ),
    Mutant(
        "crop scale of images dropped",
        "hf_frozen_llm/tasks/image_classification/data.py",
        "return Augmentation(to_height_and_width(image_size), args.random_crop_scale,",
        "return Augmentation(to_height_and_width(image_size), None,",
        "tests/training/test_settings_reach_the_run.py::test_images_are_cropped_and_resized_as_the_recipe_says",
    ),
    Mutant(
        "interpolation of crops dropped",
        "hf_frozen_llm/tasks/image_classification/data.py",
        "    resample = Image.Resampling[args.interpolation.upper()]\n",
        "    resample = Image.Resampling.BICUBIC\n",
        "tests/training/test_settings_reach_the_run.py::test_images_are_cropped_and_resized_as_the_recipe_says",
    ),
    Mutant(
        "interpolation of whole images dropped",
        "hf_frozen_llm/tasks/image_classification/data.py",
        "        resample=Image.Resampling[args.interpolation.upper()],\n",
        "        resample=Image.Resampling.BICUBIC,\n",
        "tests/training/test_settings_reach_the_run.py::test_images_are_cropped_and_resized_as_the_recipe_says",
    ),
    Mutant(
        "subset of the first rows",
        "hf_frozen_llm/data/datasets.py",
        "rows.shuffle(seed=0).select(range(max_samples))",
        "rows.select(range(max_samples))",
        "tests/data/test_streams.py::test_subsets_of_sorted_rows_are_drawn_at_random",
    ),
    Mutant(
        "augmentation of a stream ignores the epoch",
        "hf_frozen_llm/data/datasets.py",
        "[(epoch, worker, number)]",
        "[(0, worker, number)]",
        "tests/data/test_streams.py::test_random_numbers_of_a_stream_depend_on_epoch_worker_and_row",
    ),
    Mutant(
        "augmentation of a stream ignores the worker",
        "hf_frozen_llm/data/datasets.py",
        "[(epoch, worker, number)]",
        "[(epoch, 0, number)]",
        "tests/data/test_streams.py::test_random_numbers_of_a_stream_depend_on_epoch_worker_and_row",
    ),
    Mutant(
        "epoch does not reach loader processes",
        "hf_frozen_llm/data/datasets.py",
        "torch.zeros((), dtype=torch.long).share_memory_()",
        "torch.zeros((), dtype=torch.long)",
        "tests/tasks/test_image_classification.py::test_epoch_reaches_workers_that_stay",
    ),
    # Tasks and metrics.
    Mutant(
        "first view counted twice",
        "hf_frozen_llm/tasks/classification.py",
        "for view in self.views(batch)]",
        "for view in self.views(batch)[:1] + self.views(batch)]",
        "tests/tasks/test_video_classification.py::test_each_view_counts_once",
    ),
    Mutant(
        "first vote of clouds counted twice",
        "hf_frozen_llm/tasks/point_cloud_classification/__init__.py",
        "return [first, *(",
        "return [first, first, *(",
        "tests/tasks/test_point_cloud_classification.py::test_views",
    ),
    Mutant(
        "evaluation by the training split's label map",
        "hf_frozen_llm/tasks/classification.py",
        "        return match_labels(self.args, rows, self.config.label2id)\n",
        "        self.first = getattr(self, 'first', None) or match_labels(self.args, rows, self.config.label2id)\n"
        "        return self.first\n",
        "tests/training/test_settings_reach_the_run.py::test_each_split_has_its_own_numbers_of_the_classes",
    ),
    Mutant(
        "FLOPs halved",
        "hf_frozen_llm/flops.py",
        "return forward.get_total_flops() / batch_size,",
        "return forward.get_total_flops() / batch_size / 2,",
        "tests/test_flops.py::test_counts",
    ),
    # Training and resuming.
    Mutant(
        "scale of the projections' rate dropped",
        "hf_frozen_llm/training/arguments.py",
        '            scales["projections"] = self.projection_learning_rate_scale\n',
        "",
        "tests/training/test_settings_reach_the_run.py::test_layer_decay_and_the_scale_of_the_projections",
    ),
    Mutant(
        "scales of rates dropped",
        "hf_frozen_llm/training/run.py",
        "            learning_rate_scales=run_args.learning_rate_scales,\n",
        "",
        "tests/training/test_settings_reach_the_run.py::test_layer_decay_and_the_scale_of_the_projections",
    ),
    Mutant(
        "layer decay dropped",
        "hf_frozen_llm/training/run.py",
        "            layer_decay=run_args.layer_decay,\n",
        "",
        "tests/training/test_settings_reach_the_run.py::test_layer_decay_and_the_scale_of_the_projections",
    ),
    Mutant(
        "base learning rate ignores the processes",
        "hf_frozen_llm/training/run.py",
        "args.gradient_accumulation_steps * args.world_size\n        args.learning_rate",
        "args.gradient_accumulation_steps\n        args.learning_rate",
        "tests/training/test_settings_reach_the_run.py::test_base_learning_rate_counts_the_processes",
    ),
    Mutant(
        "diverged run goes on",
        "hf_frozen_llm/training/trainer.py",
        "if not (math.isfinite(norm) and math.isfinite(loss)):",
        "if False:",
        "tests/training/test_diverged.py::test_diverged_run_stops",
    ),
    Mutant(
        "NaN in JSON",
        "hf_frozen_llm/training/results.py",
        "return json.dumps(without_infinite(content), allow_nan=False, **options)",
        "return json.dumps(content, **options)",
        "tests/training/test_diverged.py::test_json_is_strict",
    ),
    Mutant(
        "loaders move the generator of dropout",
        "hf_frozen_llm/training/trainer.py",
        "        set_seed(int(np.random.SeedSequence((self.args.seed, *batch)).generate_state(1)[0]))\n",
        "",
        "tests/training/test_resume.py::test_dropout_does_not_depend_on_other_draws",
    ),
    Mutant(
        "time of earlier sessions lost",
        "hf_frozen_llm/training/progress.py",
        'self.earlier_seconds = stored.get("earlier_seconds", 0.0)',
        "self.earlier_seconds = 0.0",
        "tests/training/test_resume.py::test_time_of_earlier_sessions_counts",
    ),
    Mutant(
        "losses before a resume lost",
        "hf_frozen_llm/training/progress.py",
        'if self.first_step > 0 and "total_loss" in stored:',
        "if False:",
        "tests/training/test_resume.py::test_resumed_run_is_the_uninterrupted_one",
    ),
    Mutant(
        "other classes resumed",
        "hf_frozen_llm/training/resume.py",
        "if before is None or now is None or before == now:",
        "if True:",
        "tests/training/test_resume.py::test_other_classes_are_refused",
    ),
    Mutant(
        "two runs in one folder",
        "hf_frozen_llm/training/lock.py",
        "fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "tests/training/test_resume.py::test_two_runs_in_one_folder",
    ),
    # Ablations.
    Mutant(
        "ablation whose seeds are all 0",
        "hf_frozen_llm/commands/ablation_plan.py",
        '"--seed", str(seed), "--output_dir"',
        '"--seed", "0", "--output_dir"',
        "tests/commands/test_ablate.py::test_each_run_has_its_own_seed",
    ),
    Mutant(
        "variants that share a folder",
        "hf_frozen_llm/commands/ablation_plan.py",
        "    refuse_equal_folders(grid)\n",
        "",
        "tests/commands/test_ablate.py::test_without_scipy",
    ),
    Mutant(
        "deviation of differences with n",
        "hf_frozen_llm/commands/ablation_report.py",
        "differences.std(ddof=1)",
        "differences.std()",
        "tests/commands/test_ablation_report.py::test_intervals",
    ),
    Mutant(
        "deviation of variants with n",
        "hf_frozen_llm/commands/ablation_report.py",
        "metric.format(scores.std())",
        "metric.format(scores.std(ddof=0))",
        "tests/commands/test_ablation_report.py::test_tables",
    ),
]
