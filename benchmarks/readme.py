"""The tables of the documents, made from the result files."""

import json
from pathlib import Path

from benchmarks import (learned, mask, measure, step, tflite_arm, tflite_conv, tflite_size,
                        tflite_speed)

README = Path(__file__).parent / "README.md"
PAGES = (README, Path(__file__).parents[1] / "docs" / "tflite.md")


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(ratio, digits):
    return (f"{ratio['median']:.{digits}f} "
            f"({ratio['min']:.{digits}f} to {ratio['max']:.{digits}f})")


def step_table(result):
    rows = []
    for case in result["cases"]:
        threads = str(case["threads"] or "default")
        for name, row in case["rows"].items():
            for base in (step.BASELINE, step.TWIN):
                ratios = row.get(f"ratio to {base}")
                if ratios is None or name == base:
                    continue
                goal = step.GOALS.get((case["model"], name))
                met = goal is None or ratios["cpu_seconds"]["median"] <= goal
                with_updates = ratios.get("cpu_seconds_with_updates")
                rows.append([
                    case["model"], case["optimizer"], threads, name, base,
                    spread(ratios["cpu_seconds"], 3), spread(ratios["seconds"], 2),
                    f"{ratios['fastest_seconds']:.3f}" if case["threads"] == 1 else "",
                    "" if with_updates is None else f"{with_updates:.3f}",
                    "" if goal is None else f"{goal} {'met' if met else '**missed**'}"])
    return table(["model", "optimizer", "threads", "training", "divided by", "CPU time", "time",
                  "fastest", "CPU time with updates", "goal"], rows) + "\n\n" + made(result)


def mask_table(result):
    rows = []
    for case in result["cases"]:
        for name, row in case["rows"].items():
            cells = [case["masks"], name, f"{measure.median(row['cpu_seconds']):.3f} s"]
            if name in mask.GOALS:
                speedup, goal = row["speedup"], mask.GOALS[name]
                met = speedup["cpu_seconds"]["median"] >= goal
                cells += [spread(speedup["cpu_seconds"], 1), spread(speedup["seconds"], 1),
                          f"{goal} {'met' if met else '**missed**'}"]
            rows.append(cells + [""] * (6 - len(cells)))
    return table(["masks before", "update", "CPU time", "TFMOT's CPU time / ours",
                  "TFMOT's time / ours", "goal"], rows) + "\n\n" + made(result)


def learned_table(result):
    rows = []
    for case in result["cases"]:
        for name, row in case["rows"].items():
            dense, floor = row[f"ratio to {learned.BASELINE}"], row[f"ratio to {learned.FLOOR}"]
            base, goal = learned.GOALS.get((case["model"], name), (None, None))
            met = goal is None or row[f"ratio to {base}"]["cpu_seconds"]["median"] <= goal
            rows.append([
                case["model"], case["optimizer"] + (", XLA" if case.get("xla") else ""), name,
                f"{1000 * measure.median(row['cpu_seconds']):.1f} ms",
                spread(dense["cpu_seconds"], 2), f"{floor['cpu_seconds']['median']:.2f}",
                f"{row['peak_megabytes']:.0f} MB", f"{dense['peak_megabytes']:.2f}",
                "" if goal is None else
                f"{goal} x {base} {'met' if met else '**missed**'}"])
    return table(["model", "optimizer", "training", "CPU time", "/ dense", "/ two arrays",
                  "peak memory", "/ dense", "goal"], rows) + "\n\n" + made(result)


def size_table(result):
    def cell(row):
        return f"{row['bytes'] / 1e6:.2f} ({row['zipped'] / 1e6:.2f})"

    rows = []
    for case in result["cases"]:
        files, goals = case["rows"], []
        bounds = [", ".join(f"{files[label]['encoded'] / files[label][bound]:.3f}"
                            for label in tflite_size.OURS) for bound in tflite_size.BOUNDS]
        for label in tflite_size.OURS:
            ours = files[label]
            if ours["encoded"] > tflite_size.GOAL * ours[tflite_size.LOWER_BOUND]:
                goals.append(f"{label} {tflite_size.GOAL:g} x the lower bound **missed**")
            goal = tflite_size.FILE_GOALS.get((case["network"], case["sparsity"], label))
            if goal is not None:
                met = "met" if ours["bytes"] <= goal else "**missed**"
                goals.append(f"{label} {goal / 1e6:g} MB {met}")
        rows.append([case["network"], f"{case['sparsity']:g}", cell(files["dense float32"]),
                     *(cell(files[label]) for label in (*tflite_size.OURS, tflite_size.CONVERTER)),
                     *bounds, ", ".join(goals)])
    return table(["network", "zeros", "dense float32", *(f"ours, {o}" for o in tflite_size.OURS),
                  tflite_size.CONVERTER, *(f"encoded / {bound}" for bound in tflite_size.BOUNDS),
                  "goal"], rows) + "\n\n" + made(result)


def speed_table(result):
    rows = []
    for case in result["cases"]:
        for label, row in case["rows"].items():
            best = row["best dense"]
            goal = tflite_speed.GOALS.get((case["network"], case["sparsity"]))
            best_of_all = max(case["rows"].values(),
                              key=lambda r: r[f"times {r['best dense']}"]["median"])
            met = "" if goal is None or row is not best_of_all else (
                f"{goal} {'met' if row[f'times {best}']['median'] >= goal else '**missed**'}")
            rows.append([case["network"], f"{case['sparsity']:g}", label,
                         f"{1e3 * row['seconds']:.3f} ms",
                         *(spread(row[f"times {name}"], 2) for name in tflite_speed.DENSE),
                         best, met])
    return table(["network", "zero blocks", "file", "time",
                  *(f"times as fast as {name}" for name in tflite_speed.DENSE), "best dense",
                  "goal, to the best dense"], rows) + "\n\n" + made(result)


def conv_table(result):
    rows = []
    for case in result["cases"]:
        ours = [case["rows"][label]["times dense"] for label in tflite_size.OURS]
        goal = tflite_conv.GOALS.get(case["network"]) if case["sparsity"] == 0.9 else None
        met = "" if goal is None else (
            f"{goal:g} {'met' if ours[0]['median'] >= goal else '**missed**'}")
        rows.append([case["network"], f"{case['sparsity']:g}",
                     f"{1e3 * case['rows'][tflite_conv.DENSE]['seconds']:.2f} ms",
                     *(spread(times, 2) for times in ours), met,
                     f"{max(row['difference'] for row in case['rows'].values()):.1e}"])
    return table(["network", "zeros", "dense float32, SSE",
                  *(f"times as fast: {label}" for label in tflite_size.OURS), "goal, float32",
                  "greatest difference from the dense twin"],
                 rows) + "\n\n" + made(result)


def instructions_table(result):
    rows = []
    for case in result["cases"]:
        total = {label: row["insn"] for label, row in case["rows"].items()}
        dense, fewer = total[tflite_arm.DENSE], {
            label: total[tflite_arm.DENSE] / total[label] for label in tflite_size.OURS}
        goal = tflite_arm.GOALS.get((case["network"], case["sparsity"]))
        met = "" if goal is None else (
            f"{goal} {'met' if fewer['float32'] >= goal else '**missed**'}")
        rows.append([case["network"], f"{case['sparsity']:g}", f"{dense:.1f} M",
                     f"{total[tflite_arm.DENSE_INT8]:.1f} M",
                     *(f"{total[label]:.1f} M ({times:.2f})" for label, times in fewer.items()),
                     met])
    return table(["network", "zeros", "dense float32", "dense int8",
                  *(f"ours, {label} (times fewer)" for label in tflite_size.OURS),
                  "goal, float32"], rows) + "\n\n" + made(result)


def arm_table(result):
    """Multiply-adds that the stock aarch64 runtime executes: no time, for emulation has none."""
    newest = max((v for v in result["versions"]["LiteRT on ARM"] if v[0].isdigit()),
                 key=lambda version: [int(part) for part in version.split(".")])
    rows = []
    for name, by_version in result["outcomes"].items():
        _, network, storage = name.split("/")
        outcome = by_version[newest]
        dense, sparse = outcome["multiply_adds_dense"], outcome["multiply_adds"]
        errors = [by_version[v]["error"] for v in result["versions"]["LiteRT on ARM"]]
        rows.append([network, storage, f"{dense / 1e6:.2f} M", f"{sparse / 1e6:.2f} M",
                     f"{dense / sparse:.2f}", f"{max(errors):.1e}"])
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items() if isinstance(v, str))
    return table(["network", "storage", "dense", "sparse", "times fewer",
                  "greatest error of all releases"], rows) + "\n\n" + (
        f"`{result['command']}`, pictures of {result['picture']} x {result['picture']}, "
        f"{result['zeros of 1x1 kernels']:.0%} zeros in 1x1 kernels; counts of LiteRT {newest}, "
        f"errors of {', '.join(result['versions']['LiteRT on ARM'])}; {versions}.")


def made(result):
    machine = result["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items() if v)
    return (f"`{result['command']}`, {result['date']}, {machine['cores']} cores of "
            f"{machine['cpu']} (load {machine['load']:.1f} when it ended), {versions}, seed "
            f"{result['settings']['seed']}.")


def input_table(result):
    rows = []
    for case in result["cases"]:
        batch, step_of_it = (measure.median(case["seconds"][what]) for what in ("batch", "step"))
        met = case["ratio"]["median"] <= result["settings"]["goal"]
        rows.append([case["pipeline"], str(case["examples"]), f"{1000 * batch:.2f} ms",
                     f"{1000 * step_of_it:.1f} ms", f"{case['examples'] / batch:,.0f}",
                     spread(case["ratio"], 4),
                     f"{result['settings']['goal']} {'met' if met else '**missed**'}"])
    return table(["pipeline", "examples of a batch", "a batch", "a dense step", "examples a second",
                  "batch / step", "goal"], rows) + "\n\n" + made(result)


TABLES = {"step": step_table, "mask": mask_table, "learned": learned_table,
          "arm_networks": arm_table, "tflite_size": size_table, "tflite_speed": speed_table,
          "tflite_conv": conv_table, "tflite_arm": instructions_table,
          "input_wait": input_table}


def filled(text):
    """`text` with what stands between the markers of each table replaced by the table."""
    for name, make in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        path = measure.RESULTS / f"{name}.json"
        if begin in text and path.exists():
            before, rest = text.split(begin)
            _, after = rest.split(end)
            text = f"{before}{begin}{make(json.loads(path.read_text()))}\n{end}{after}"
    return text


def write():
    for page in PAGES:
        page.write_text(filled(page.read_text()))
