"""What a checkpoint costs early and late in a run, and with few and with many rows.

usage: python benchmarks/speed/checkpoint.py [--rows 1000 1000000] [--after 0 99980] [--steps 12]

For every number of rows and every number of steps that a run of 100,000 steps is said to have behind it, it takes some
steps on the shipped base and saves after each of them. It prints the seconds and CPU seconds of a checkpoint, the
median over the steps but the first, and the bytes of its folder.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import home  # noqa: F401
from size import write_rows

from softprompt.config.commands import TrainConfig
from softprompt.errors import Interrupted
from softprompt.system.process import silence_libraries
from softprompt.training.run import load_inputs, note_run, prepare_run
from softprompt.training.trainer import Trainer

TOTAL = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 1_000_000], help="default: %(default)s")
    parser.add_argument("--after", type=int, nargs="+", default=[0, 99_980], help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=12, help="steps to take and to save; default: %(default)s")
    options = parser.parse_args()
    silence_libraries()
    for count in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            rows = Path(folder) / "rows.jsonl"
            write_rows(rows, count)
            for after in options.after:
                config = TrainConfig(
                    data=str(rows),
                    prompt_file=str(Path(folder) / f"{after}.safetensors"),
                    virtual_tokens=8,
                    max_steps=TOTAL,
                    eval_fraction=0.001,
                    per_device_train_batch_size=1,
                    gradient_accumulation_steps=1,
                    save_steps=1,
                )
                trainer = prepare_run(config, *load_inputs(config))
                seconds, busy, size = saved(trainer, after, options.steps)
                what = f"{count:,} rows, after step {after:,}"
                print(f"{what}: {1000 * seconds:.1f} ms, {1000 * busy:.1f} ms of CPU, {size:,} bytes", flush=True)


def saved(trainer: Trainer, after: int, steps: int) -> tuple[float, float, int]:
    """Take steps and save after each: seconds and CPU seconds of the median checkpoint, and the bytes of the last."""
    note_run(trainer)
    trainer.step = after
    clocks, save = [], trainer.save

    def timed() -> None:
        start = time.perf_counter(), time.process_time()
        save()
        clocks.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        if len(clocks) == steps:
            trainer.stop_signal = 15

    trainer.save = timed  # type: ignore[method-assign]
    with contextlib.suppress(Interrupted):
        trainer.run()
    (seconds, busy) = (statistics.median(each) for each in zip(*clocks[1:], strict=True))
    last = max(trainer.config.run_folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return seconds, busy, sum(path.stat().st_size for path in last.iterdir())


if __name__ == "__main__":
    main()
