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
import sys
import time
from pathlib import Path

from tsexport.models.training.reproducible import CHECKPOINTS, reproduces, restart_with, write_checkpoint

FIXED_KERNELS = {
    "OMP_NUM_THREADS": "1",
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}
OUTPUT = CHECKPOINTS / "patchtst-cpu.safetensors"

SEED = 0
STEPS = 1000
BATCH = 64
LEARNING_RATE = 5e-4
WEIGHT_DECAY = 0.01
WARM_UP_FRACTION = 0.1
GRADIENT_NORM = 1.0


def train(output: Path) -> None:
    import torch

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
    metadata = {
        "seed": SEED,
        "series": {"seed": market.REFERENCE_SEED, "rows": len(table)},
        "steps": STEPS,
        "batch": BATCH,
        "mse": round(errors["model"], 6),
        "persistence_mse": round(errors["persistence"], 6),
        "window_mean_mse": round(errors["window mean"], 6),
    }
    write_checkpoint(model, output, metadata)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the checkpoint (default: the committed one)")
    args = parser.parse_args()
    restart_with(FIXED_KERNELS)
    if args.check:
        return 0 if reproduces(args.output, train, "mse") else 1
    train(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
