"""Write the files of `tests/fixtures/pt` with torch's own torch.save. Runs where torch (>= 2.3) is installed.

    python scripts/write_pt_fixtures.py

hubsae itself needs no torch. `tests/test_pt_file.py` says what is in the files, so change both together.
"""

from pathlib import Path

import torch  # pyright: ignore[reportMissingImports]

FOLDER = Path(__file__).parents[1] / "tests" / "fixtures" / "pt"


class Coder(torch.nn.Module):
    """A dictionary as most people write one, with buffers beside its parameters."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Linear(3, 4)
        self.decoder = torch.nn.Linear(4, 3, bias=False)
        self.register_buffer("k", torch.tensor(2, dtype=torch.int32))
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("alive", torch.tensor([True, False, True, True]))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.decoder(torch.relu(self.encoder(rows)))


def coder() -> Coder:
    """Weights that a test can write down: 0, 1, 2, ... in each."""
    made = Coder()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.arange(parameter.numel(), dtype=torch.float32).reshape(parameter.shape))
    return made


def views() -> dict:
    """Tensors that are not laid out one after the other, and every number type."""
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    names = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8"]
    names += ["uint8", "uint16", "uint32", "uint64", "bool"]
    return {
        "whole": whole,
        "turned": whole.T,
        "every second": whole[1:, ::2],
        "one row": whole[2],
        "expanded": torch.tensor([1.0, 2.0]).unsqueeze(1).expand(2, 5),
        "half, turned": torch.arange(6).reshape(2, 3).to(torch.bfloat16).T,
        "number": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "kinds": {name: torch.tensor([0, 1, 100], dtype=getattr(torch, name)) for name in names},
    }


def checkpoint() -> dict:
    """A training checkpoint, with what people put beside weights."""
    return {
        "state_dict": coder().state_dict(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "activation": "TopK",
        "activation_kwargs": {"k": 32, "postact_fn": None},
        "layers": [1, (2, 3), {4, 5}],
        "size": torch.Size([3, 4]),
        "dtype": torch.bfloat16,
        "device": torch.device("cuda:1"),
        "large": 2**70,
        "loss": -0.25,
        "digest": b"\x00\xff",
    }


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.save(coder().state_dict(), FOLDER / "state_dict.pt")
    torch.save(views(), FOLDER / "views.pt")
    torch.save(checkpoint(), FOLDER / "checkpoint.pt")
    torch.save(checkpoint(), FOLDER / "protocol4.pt", pickle_protocol=4)
    torch.save(coder().state_dict(), FOLDER / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"codes": torch.ones(3).to(torch.float8_e4m3fn)}, FOLDER / "float8.pt")
    torch.save({"sum": torch.ones(2, dtype=torch.complex64)}, FOLDER / "complex.pt")
    torch.save(coder(), FOLDER / "module.pt")
    torch.jit.trace(coder(), torch.ones(1, 3)).save(str(FOLDER / "script.pt"))


if __name__ == "__main__":
    main()
