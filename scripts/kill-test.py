#!/usr/bin/env python3
"""Kills every command that writes something, at random moments, and runs it again until it is done.

    python3 scripts/kill-test.py target/release/llm-quantize --kills 500

Each command first runs undisturbed. Then, in a fresh folder each time, it is started, killed after a
random time (SIGKILL, SIGTERM or SIGINT; up to three times in a row), and run once more. What it writes
must be the same bytes as without a kill, nothing else may be left in the folder, and a run that was asked
to stop must end with status 130 (or be done). Prints a line for each command; the exit status is 1 if
anything was wrong. Needs the model in models/tiny and nothing but the standard library.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

RECIPE = """effort = "fast"
[text]
sequences = 8
held-out = 2
length = 64
[blocks]
steps = 3
[distillation]
steps = 30
sequences = 8
batch = 2
"""

# Figures that differ from run to run, in documents of JSON.
VOLATILE = {"duration_seconds", "peak_memory_bytes", "memory_bytes", "tokens_per_second", "created", "timestamp"}


def commands(model):
    """Name, arguments, and what is prepared before (arguments of runs that are not killed)."""
    prepare_gguf = [["quantize", model, "gguf", "-q", "Q8_0", "-n", "in", "-o", "../inputs", "--no-checkpoints"]]
    prepare_littlebit = [
        ["littlebit", "compress", model, "--effort", "none", "--iterations", "4", "--skip-validation",
         "--weighting", "none", "-n", "in.littlebit", "-o", "../inputs", "--no-checkpoints"]
    ]
    packed = ["--calibration-samples", "1"]
    return [
        ("quantize gguf", ["quantize", model, "gguf", "-q", "Q4_K_M", "-n", "out"], []),
        ("quantize gguf, split", ["quantize", model, "gguf", "-q", "IQ3_S", "--split-max-size", "400K", "-n", "out"], []),
        ("quantize gguf, dynamic", ["quantize", model, "gguf", "-q", "dynamic", "--target-bpw", "5", "-n", "out"], []),
        ("quantize gptq", ["quantize", model, "gptq", "-q", "4bit", "-n", "out", *packed], []),
        ("quantize awq", ["quantize", model, "awq", "-q", "4bit", "-n", "out", *packed], []),
        ("quantize smoothquant", ["quantize", model, "smoothquant", "-q", "8bit", "-n", "out", *packed], []),
        ("littlebit compress, none",
         ["littlebit", "compress", model, "--effort", "none", "--iterations", "20", "--skip-validation",
          "--calibration-samples", "64", "-n", "out.littlebit"], []),
        ("littlebit compress, fast",
         ["littlebit", "compress", model, "--effort", "fast", "--recipe", "../recipe.toml", "--iterations", "4",
          "--skip-validation", "-n", "out.littlebit"], []),
        ("analyze", ["analyze", model, "--chunks", "24", "--ctx-size", "128", "-o", "out.imatrix", "--no-cache"], []),
        ("convert", ["convert", "../inputs/in.gguf", "hf", "-o", ".", "-n", "out"], prepare_gguf),
        ("littlebit convert", ["littlebit", "convert", "../inputs/in.littlebit", "gguf-ext", "-o", ".", "-n", "out"], prepare_littlebit),
        ("quality report", ["quality", "report", model, "../inputs/in.gguf", "--calibration-samples", "4",
                            "--skip-coherence", "-o", "out.json"], prepare_gguf),
    ]


def cleaned(value):
    """A document without figures that differ from run to run."""
    if isinstance(value, dict):
        return {key: cleaned(item) for key, item in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return [cleaned(item) for item in value]
    return value


def contents(folder):
    """Digest of every file of a folder; of a document, without its times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            if not any(path.iterdir()):
                found[str(path.relative_to(folder)) + "/"] = "an empty folder"
            continue
        data = path.read_bytes()
        if path.suffix in (".json", ".qreport"):
            try:
                data = json.dumps(cleaned(json.loads(data)), sort_keys=True).encode()
            except ValueError:
                pass
        found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found


class Runner:
    def __init__(self, binary, work, threads):
        self.binary, self.work, self.threads = binary, work, threads
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "LLM_QUANTIZE_"))}
        self.environment.update(HF_HUB_OFFLINE="1", HF_HOME=str(work / "hf"), RUST_BACKTRACE="0",
                                RAYON_NUM_THREADS=str(threads))

    def start(self, arguments, folder):
        return subprocess.Popen([self.binary, *arguments], cwd=folder, env=self.environment,
                                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def whole(self, arguments, folder):
        began = time.time()
        process = self.start(arguments, folder)
        _, errors = process.communicate()
        return process.returncode, errors.decode(errors="replace"), time.time() - began


def trial(runner, arguments, expected, seconds, chance):
    """Kills and resumes once. Gives the kills that hit, whether work was taken up, and what is wrong."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=runner.work))
    hits = resumed = 0
    wrong, history = [], []
    for _ in range(chance.choice([1, 1, 2, 3])):
        number = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        process = runner.start(arguments, folder)
        delay = chance.uniform(0, seconds * 1.05)
        time.sleep(delay)
        hit = process.poll() is None
        if hit:
            process.send_signal(number)
        _, errors = process.communicate()
        history.append(f"{number.name} after {delay:.3f} s: {process.returncode}")
        hits += hit
        allowed = {0, -number} if number == signal.SIGKILL else {0, 130}
        # Before the program itself has begun, nobody can change what a signal does.
        if number != signal.SIGKILL and delay < 0.02:
            allowed.add(-number)
        if process.returncode not in (allowed if hit else {0}):
            wrong.append(f"status {process.returncode}: {errors.decode(errors='replace')[-300:]}")
    code, errors, _ = runner.whole(arguments, folder)
    resumed = "Resuming from checkpoint" in errors
    if code != 0:
        wrong.append(f"the last run: status {code}: {errors[-300:]}")
    else:
        found = contents(folder)
        left = sorted(set(found) - set(expected))
        missing = sorted(set(expected) - set(found))
        other = sorted(name for name in expected if name in found and found[name] != expected[name])
        for what, names in (("left over", left), ("missing", missing), ("other bytes", other)):
            if names:
                wrong.append(f"{what}: {', '.join(names)}")
    if wrong:
        wrong.append("; ".join(history) + f"; in {folder}")
    else:
        shutil.rmtree(folder)
    return hits, resumed, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--kills", type=int, default=120, help="in all, divided among the commands")
    parser.add_argument("--only", help="commands whose name contains this")
    parser.add_argument("--model", default="models/tiny")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    work = pathlib.Path(tempfile.mkdtemp(prefix="kill-test-"))
    (work / "recipe.toml").write_text(RECIPE)
    (work / "inputs").mkdir()
    runner = Runner(str(pathlib.Path(options.binary).resolve()), work, options.threads)
    chosen = [entry for entry in commands(str(pathlib.Path(options.model).resolve()))
              if not options.only or options.only in entry[0]]
    total = failures = 0
    for name, arguments, before in chosen:
        folder = work / "undisturbed"
        folder.mkdir()
        for preparation in before:
            code, errors, _ = runner.whole(preparation, folder)
            if code != 0:
                sys.exit(f"{name}: cannot be prepared: {errors}")
        runs = [runner.whole(arguments, folder)]
        expected = contents(folder)
        if runs[0][0] != 0:
            sys.exit(f"{name}: fails undisturbed: {runs[0][1]}")
        shutil.rmtree(folder)
        kills = trials = taken_up = 0
        wrong = []
        while kills < options.kills / len(chosen) and len(wrong) < 10:
            hits, resumed, found = trial(runner, arguments, expected, runs[0][2], chance)
            kills, trials, taken_up = kills + hits, trials + 1, taken_up + resumed
            if found:
                wrong.append(found)
        total, failures = total + kills, failures + len(wrong)
        print(f"{name}: {runs[0][2]:.2f} s, {kills} kills in {trials} runs, {taken_up} took up work, "
              f"{len(wrong)} wrong", flush=True)
        for found in wrong[:3]:
            print("  " + "\n  ".join(found), flush=True)
    print(f"{total} kills, {failures} runs were wrong")
    if not failures:
        shutil.rmtree(work)
    sys.exit(1 if failures else 0)


main()
