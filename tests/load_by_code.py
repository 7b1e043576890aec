# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""
Load models of the Hub by their own code: a script for an interpreter that has torch and transformers, but not this
package. Its arguments are a file of tasks, the file for its results, and the paths of the other packages.
"""

import sys
from pathlib import Path


if __name__ == "__main__":
    tasks_file, results_file, *paths = sys.argv[1:]
    sys.path += paths

    class Absent:
        """The package, if it is installed among the others, cannot be imported."""

        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "hf_frozen_llm":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Absent())

    import torch
    import transformers

    def run(model, inputs):
        with torch.no_grad():
            return model.eval()(**inputs)[0]

    results = []
    for task in torch.load(tasks_file, weights_only=False):
        name, inputs, options = task["name"], task["inputs"], {"trust_remote_code": True, **task["options"]}
        outputs, files = {}, {}
        for auto in task["auto_classes"]:
            model = getattr(transformers, auto).from_pretrained(name, **options)
            assert type(model).__module__.startswith("transformers_modules."), type(model)
            outputs[auto] = run(model, inputs)
            folder = Path(results_file).with_name(f"{task['id']}-{auto}")
            model.save_pretrained(folder)
            files[auto] = sorted(path.name for path in folder.iterdir())
            # AutoBackbone asks the Hub for the repository, and takes no folders
            loader = type(model) if auto == "AutoBackbone" else getattr(transformers, auto)
            again = loader.from_pretrained(folder, trust_remote_code=True)
            outputs[f"{auto}, saved again"] = run(again, inputs)
        samples = {}
        for auto in task["processors"]:
            processor = getattr(transformers, auto).from_pretrained(
                name, trust_remote_code=True, revision=task["commit"]
            )
            samples[auto] = dict(processor(task["sample"], return_tensors="pt"))
            folder = Path(results_file).with_name(f"{task['id']}-{auto}")
            processor.save_pretrained(folder)
            files[auto] = sorted(path.name for path in folder.iterdir())
        results.append({"outputs": outputs, "files": files, "samples": samples})
    torch.save(results, results_file)
    print(transformers.__version__)
