#!/usr/bin/env python3
"""Train the reference checkpoint of patchtst-cpu: `python models/training/patchtst_cpu.py [--check] [--output FILE]`.

The model learns the close 8 bars ahead, scaled by its window's minimum and range, from the synthetic market series of
`tsexport.calibration.market` (24,000 bars of 90 minutes; the first 70 % to train on, the last 15 % to judge by).  It
takes about two minutes on one core.

The same script gives the same bytes: it starts itself again with one thread and with the kernels that every x86-64 CPU
has, and everything random comes from one seed.  The file's metadata hold the seed, the rows, what was reached, and the
kind of machine.  `--check` trains into a temporary folder and compares: bit by bit on the same kind of machine; on
another, or with another torch or numpy, training takes another path through the same loss, and the two models' task
errors must agree to 5 %.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

FIXED_KERNELS = {
    "OMP_NUM_THREADS": "1",
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}
ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "checkpoints" / "patchtst-cpu.safetensors"

SEED = 0
STEPS = 1000
BATCH = 64
LEARNING_RATE = 5e-4
WEIGHT_DECAY = 0.01
WARM_UP_FRACTION = 0.1
GRADIENT_NORM = 1.0
TASK_ERROR_TOLERANCE = 0.05


def restart_with_fixed_kernels() -> None:
    """Replace this process by one whose libraries use the same kernels on every machine (they read this at start)."""
    if any(os.environ.get(name) != value for name, value in FIXED_KERNELS.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **FIXED_KERNELS})


def train(output: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from tsexport.calibration import market
    from tsexport.models import patchtst_cpu

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    table, close = market.reference_table()
    inputs, targets = map(torch.from_numpy, market.scaled_examples(table, market.training_starts(len(table))))
    held_inputs, held_targets = map(
        torch.from_numpy, market.scaled_examples(table, market.evaluation_starts(len(table)))
    )
    model = patchtst_cpu.build(patchtst_cpu.Config())
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=WARM_UP_FRACTION
    )
    started = time.monotonic()
    for step in range(1, STEPS + 1):
        chosen = torch.randint(len(inputs), (BATCH,))
        loss = torch.nn.functional.mse_loss(model(inputs[chosen]), targets[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            left = (time.monotonic() - started) / step * (STEPS - step)
            print(f"step {step} of {STEPS}, loss {loss.item():.4f}, {left:.0f} s left", file=sys.stderr)

    model.eval()
    with torch.inference_mode():
        predicted = torch.cat([model(part) for part in torch.split(held_inputs, 256)])
    errors = {
        "model": (predicted - held_targets).square().mean().item(),
        "persistence": (held_inputs[:, -1, [close]] - held_targets).square().mean().item(),
        "window mean": (held_inputs[:, :, close].mean(dim=1, keepdim=True) - held_targets).square().mean().item(),
    }
    print(f"MSE on {len(held_targets)} windows of the last 15 % of rows")
    for name, value in errors.items():
        print(f"  {name:<12} {value:.5f}")
    # One key: safetensors writes several in no fixed order.
    metadata = {
        "seed": SEED,
        "series": {"seed": market.REFERENCE_SEED, "rows": len(table)},
        "steps": STEPS,
        "batch": BATCH,
        "mse": round(errors["model"], 6),
        "persistence_mse": round(errors["persistence"], 6),
        "window_mean_mse": round(errors["window mean"], 6),
        "made_on": kind_of_machine(),
    }
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    temporary = output.with_name(f".{output.name}.part")
    save_file(state, temporary, metadata={"tsexport": json.dumps(metadata, sort_keys=True)})
    temporary.chmod(0o644)
    temporary.replace(output)


def kind_of_machine() -> dict[str, str]:
    """Return what the last bits of a training run may depend on."""
    import cpuinfo
    import numpy as np
    import torch

    flags = set(cpuinfo.get_cpu_info().get("flags", ()))
    vectors = [name for name in ("avx2", "fma", "avx512f", "avx512_vnni", "amx_tile", "asimd") if name in flags]
    versions = {"torch": torch.__version__.split("+")[0], "numpy": np.__version__}
    return {"architecture": platform.machine(), "vectors": " ".join(vectors), **versions}


def read_metadata(path: Path) -> dict[str, object]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        found: dict[str, object] = json.loads(file.metadata()["tsexport"])
    return found


def check(committed: Path) -> bool:
    """Train again and return whether the committed file is reproduced."""
    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder) / committed.name
        train(again)
        if again.read_bytes() == committed.read_bytes():
            print(f"{committed.name} is reproduced bit by bit")
            return True
        old, new = read_metadata(committed), read_metadata(again)
    errors = float(str(old["mse"])), float(str(new["mse"]))
    print(f"the bytes of {committed.name} differ: made on {old['made_on']} with task MSE {errors[0]},")
    print(f"now on {new['made_on']} with {errors[1]}")
    return old["made_on"] != new["made_on"] and abs(errors[1] - errors[0]) <= TASK_ERROR_TOLERANCE * errors[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the checkpoint (default: the committed one)")
    args = parser.parse_args()
    restart_with_fixed_kernels()
    if args.check:
        return 0 if check(args.output) else 1
    train(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
