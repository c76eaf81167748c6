"""How long the README's two commands take from a bare clone, and what the first job reaches.

    python benchmarks/first_job.py      # writes benchmarks/results/first_job.json and first_job.md

Clones the commit that is checked out into a temporary folder and runs there `make demo`, which installs what it needs,
`make demo` again, which installs nothing, and `make test`, which installs the development tools first. Then the default
job with further seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from machine import describe

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
JSON = RESULTS / "first_job.json"


def timed(*command: str, cwd: Path) -> tuple[float, str]:
    """Seconds and the last line of output; a command that fails ends the benchmark."""
    start = time.perf_counter()
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {done.returncode}:\n{done.stdout[-3000:]}")
    return time.perf_counter() - start, done.stdout.strip().splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2], help="beside seed 0, which make demo takes")
    parser.add_argument("--commands", nargs="*", default=["make demo", "make demo", "make test"])
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="srattn-first-job-"))
    clone = folder / "srattn"
    commands, runs = [], []
    try:
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        reference = ROOT.parent / "shared"
        if reference.is_dir():  # beside the clone as beside the checkout, so that no test is skipped
            (folder / "shared").symlink_to(reference)
        for command in args.commands:
            seconds, last = timed(*command.split(), cwd=clone)
            first = command not in [c["command"] for c in commands]
            commands.append(
                {"command": command, "run": "first" if first else "second", "seconds": round(seconds, 1), "says": last}
            )
            print(commands[-1])
        for seed in args.seeds:
            timed(str(clone / ".venv/bin/srattn"), "train", "--seed", str(seed), cwd=clone)
        for run in sorted((clone / "runs").glob("*")):
            result = json.loads((run / "result.json").read_text())
            config = (run / "config.yaml").read_text()
            seed = int(next(line for line in config.splitlines() if line.startswith("seed:")).split(":")[1])
            records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            runs.append(
                {
                    "seed": seed,
                    "accuracy": result["accuracy"],
                    "training_seconds": round(sum(r["seconds"] for r in records), 1),
                }
            )
            print(runs[-1])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    machine = describe(os.cpu_count() or 1)
    known = json.loads(JSON.read_text()) if JSON.exists() else {"commands": [], "runs": []}
    if known.get("machine") == machine:  # commands may be measured one by one
        named = {c["command"] for c in commands}
        commands = [c for c in known["commands"] if c["command"] not in named] + commands
        runs = runs or known["runs"]
    write({"machine": machine, "commands": commands, "runs": runs})


def write(result: dict) -> None:
    """The figures as JSON and as a table."""
    RESULTS.mkdir(exist_ok=True)
    JSON.write_text(json.dumps(result, indent=1) + "\n")
    m = result["machine"]
    lines = [
        "# The first job",
        "",
        "From a bare clone; made by `benchmarks/first_job.py`.",
        "",
    ]
    lines += [f"{m['cpu']}, {m['cores']} cores, Python {m['python']}, torch {m['torch']}, commit {m['commit']}.", ""]
    lines += ["| command | run | seconds | last line |", "|---|---|---|---|"]
    lines += [
        f"| `{c['command']}` | {c['run']} | {c['seconds']:.0f} | {c['says'].replace('|', '/')} |"
        for c in result["commands"]
    ]
    lines += ["", "| seed | held-out accuracy | seconds of training |", "|---|---|---|"]
    lines += [f"| {r['seed']} | {100 * r['accuracy']:.2f} % | {r['training_seconds']:.0f} |" for r in result["runs"]]
    (RESULTS / "first_job.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
