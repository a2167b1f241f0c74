"""The experiments of the recipes: list, run, sweep, table, plot and report."""

import sys

from tflite_export.quiet import quiet

with quiet():  # TensorFlow's first import
    from recipes.reporting import page, plots, readme, tables
    from recipes.running import configuration, program, registry, runner, sweep

USAGE = """\
python -m recipes list [NAME]                    the recipes, or the settings of one
python -m recipes run NAME [key=value ...]       one run; the same command again does nothing
python -m recipes sweep NAME [key=v1,v2,... ...] its grid, or a search: tuner=, trials=, workers=
python -m recipes table NAME [runs_dir=runs]     what its runs have come to
python -m recipes plot NAME [runs_dir=runs out=] loss over sparsity, ours and the published
python -m recipes report NAME [runs_dir=runs out=]  both, and the configuration, as one HTML page
python -m recipes keep NAME [runs_dir=runs]      its records into recipes/results, and README.md
python -m recipes readme                         the tables of recipes/README.md anew
"""


# What is done with the runs of a recipe
SHOWN = {"table": tables.show, "plot": plots.show, "report": page.show, "keep": readme.show}


def main(argv=None):
    """Returns the exit status: 0, 1 if trials of a sweep failed, or as `program.status` has it."""
    argv = sys.argv[1:] if argv is None else argv
    commands = {"list": list_recipes, "run": run, "sweep": sweep_runs, "readme": write_readme,
                **{command: shows(command) for command in SHOWN}}
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0

    def call():
        if argv[0] not in commands:
            raise ValueError(f"There is no command {argv[0]!r}. "
                             f"{configuration.nearest(argv[0], commands)}")
        return commands[argv[0]](argv[1:])

    return program.status(call)


def list_recipes(words):
    if words:
        if len(words) > 1:
            raise ValueError(f"list takes the name of one recipe. Received: {' '.join(words)}")
        name, = words
        module = registry.load(name)
        print(f"{name}: {registry.first_line(module)}\n")
        rows = list(configuration.describe(module.Configuration))
        width = max(len(left) for left, _ in rows)
        for left, right in rows:
            print(f"  {left:{width}}  {right}")
        if any(left.endswith("*") for left, _ in rows):
            print(f"\n{configuration.STAR}")
        print("\nand, which are no part of a run's configuration: "
              + " ".join(f"{key}={'' if value is None else value}"
                         for key, value in runner.OPTIONS.items()))
        return
    for name in registry.RECIPES:
        print(f"{name:28}{registry.first_line(registry.load(name))}")
    for name in registry.PROGRAMS:
        print(f"{name:28}a program of its own: python -m recipes.{name} --help")


def run(words):
    name, words = _name(words, "run")
    options, configured = runner.parse(name, words)
    runner.run(name, configured, options)


def sweep_runs(words):
    name, words = _name(words, "sweep")
    return min(sweep.run(name, words), 1)


def shows(command):
    """The command that hands the name of a recipe and the words after it to one of `SHOWN`."""
    def show(words):
        name, words = _name(words, command)
        registry.load(name)  # or what there is
        SHOWN[command](name, words)

    return show


def write_readme(words):
    configuration.check_keys(configuration.pairs(words), [])
    readme.write()


def _name(words, command):
    if not words:
        raise ValueError(f"{command} needs the name of a recipe: {', '.join(registry.RECIPES)}.")
    return words[0], words[1:]


if __name__ == "__main__":
    sys.exit(main())
