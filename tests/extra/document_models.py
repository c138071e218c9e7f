"""Makes the ONNX files of tests/documents, which the book's chapters plan and train, as its chapter on PyTorch exports them.

    python tests/extra/document_models.py [FOLDER]

They are kept in the repository, so this is run by hand when an exporter changes. Of the exporter's metadata the modules' names
stay, which plans show; stack traces, with the paths of the machine, go.
"""

import pathlib
import sys

import onnx
import torch
from torch import nn


class Digits(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(16 * 16, 10)

    def forward(self, x):
        h = torch.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return self.head(self.drop(h.flatten(1)))


class Classes(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(64, 128)
        self.out = nn.Linear(128, 10)

    def forward(self, x):
        return self.out(torch.relu(self.hidden(x))).argmax(1)


def export(path, model, x, output, **how):
    batch = {"x": {0: torch.export.Dim("batch")}}
    names = {"input_names": ["x"], "output_names": [output]}
    torch.onnx.export(model, (x,), dynamo=True, dynamic_shapes=batch, **names, **how).save(path)
    file = onnx.load(path)
    for graph in [file.graph, *file.functions]:
        for node in graph.node:
            kept = [(p.key, p.value) for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"]
            del node.metadata_props[:]
            for key, value in kept:
                node.metadata_props.add(key=key, value=value)
            node.doc_string = ""
    file.graph.doc_string = ""
    onnx.save(file, path)


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parents[1] / "documents")
    for name, optimize in [("digits", False), ("opt", True)]:
        torch.manual_seed(0)
        training = torch.onnx.TrainingMode.TRAINING
        images = torch.randn(32, 1, 8, 8)
        export(folder / f"{name}.onnx", Digits().train(), images, "logits", optimize=optimize, training=training)
    torch.manual_seed(0)
    export(folder / "classes.onnx", Classes().eval(), torch.randn(32, 64), "digit")


if __name__ == "__main__":
    main()
