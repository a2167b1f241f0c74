"""The findings of The State of Sparsity, one by one: the paper's numbers and ours beside them.

All numbers are losses relative to the dense network, in per cent: 1 - accuracy / that of the dense
one, or the same with BLEU. Published ones are the best of many runs, chosen by that very number
(`state_of_sparsity.best_at`); ours are means over the seeds of the runs that were kept.
"""

import statistics

from recipes.reporting import results, state_of_sparsity, tables
from recipes.running import registry

LEADERS = ("magnitude", "variational_dropout", "l0", "continuous_sparsification", "random")
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
SECOND_LIVES = ("lottery", "scratch_e", "scratch_b")
MASK_SPARSITIES = (0.8, 0.9, 0.95)
NEAR = 0.01  # 96.5 % was trained for extended pruning only; the next is 98 %
# Top-1 accuracy of the published checkpoints of extended magnitude pruning, ResNet-50: README.md
# of google-research/google-research, state_of_sparsity. There is no file of those runs.
EXTENDED = {0.8: 0.7652, 0.9: 0.7516, 0.95: 0.7271, 0.965: 0.6926}
SHORT_NAMES = {"variational_dropout": "VD", "l0": "L0", "continuous_sparsification": "CS",
               "scratch_e": "scratch-e", "scratch_b": "scratch-b"}
# Settings that make it another network
SIZES = ("model", "filters", "depth", "vocabulary", "width", "hidden", "heads", "layers")
# What we ran: the recipe, and the settings that are not its defaults.
NETWORKS = {
    "LeNet-300-100": ("sos_lenet_mnist", ()),
    "LeNet-5-Caffe": ("sos_lenet_mnist", ("model=lenet5",)),
    "ResNet-20 of 8 filters": ("sos_resnet20_cifar", ()),
    "small Transformer": ("sos_transformer_multi30k", ()),
}


class Ours:
    """The kept runs of one network.

    Attributes:
      losses: {(technique, sparsity, its other settings): [relative loss of each seed, per cent]}.
      layers: {the same: [{kernel: sparsity} of each seed]}.
      records: all of them, those of the dense network too.
      ends: what its recipe calls the first and the last kernel, or None.
    """

    def __init__(self, network, folder=results.FOLDER):
        name, common = NETWORKS[network]
        kind, measure = registry.load(name).Configuration, registry.measure(name)
        groups = tables.groups(tables.records(name, folder))
        dense = tables.dense_quality(groups, measure)
        self.losses, self.layers, self.records = {}, {}, []
        self.ends = getattr(registry.load(name), "ENDS", None)
        for key, some in groups.items():
            words = tables.changed(key, kind)
            if not set(common) <= set(words):
                continue
            if any(word.partition("=")[0] in SIZES for word in set(words) - set(common)):
                continue
            self.records += some
            if key[0] == "dense":
                continue
            found = [tables.relative_loss(key, record["report"][measure.key], dense, kind)
                     for record in some]
            place = (key[0], key[1], frozenset(words) - frozenset(common))
            if None not in found:  # of several places: each has dense runs of its own
                self.losses.setdefault(place, []).extend(100 * loss for loss in found)
            self.layers.setdefault(place, []).extend(
                {kernel["name"]: kernel["sparsity"] for kernel in record["report"]["kernels"]}
                for record in some)

    def loss(self, technique, sparsity, *words):
        """[relative loss of each seed, per cent], or None."""
        return self.losses.get((technique, sparsity, frozenset(words)))


def _published(network, technique, sparsity, within=1.0):
    """[relative loss, per cent] of the best run at least so sparse, or None: where there is none
    that is sparser by less than `within`."""
    best = state_of_sparsity.best_at(network, technique, sparsity)
    if best is None or best[0] > sparsity + within:
        return None
    return [100 * (1 - best[1] / state_of_sparsity.dense(network))]


def _ranked(losses):
    """`L0 1.2, magnitude 1.5 ± 0.1`, the least loss first; of {technique: list or None}."""
    known = {name: values for name, values in losses.items() if values}
    return ", ".join(
        f"{SHORT_NAMES.get(name, name)} {results.spread(values, '.2f')}"
        for name, values in sorted(known.items(), key=lambda item: statistics.fmean(item[1])))


def _heading(sparsities):
    return ["network", *(f"{100 * s:g} %" for s in sparsities)]


def techniques(ours):
    """Which technique loses least at a sparsity."""
    rows = [[f"published: {network}", *(
        _ranked({t: _published(network, t, s) for t in LEADERS
                 if t in state_of_sparsity.FILES[network]}) for s in SPARSITIES)]
        for network in state_of_sparsity.FILES]
    rows += [[network, *(
        _ranked({t: one.loss(t, s) for t in LEADERS}
                | {"L0, controller": one.loss("l0", s, "reach=controller")})
        for s in SPARSITIES)] for network, one in ours.items()]
    return results.markdown(_heading(SPARSITIES), rows)


def extended(ours):
    """Magnitude pruning with some layers spared, against the uniform one and against VD."""
    base = state_of_sparsity.dense("ResNet-50")
    sparsities = tuple(EXTENDED)
    rows = [["published: ResNet-50", *(
        _ranked({"extended": [100 * (1 - EXTENDED[s] / base)],
                 "uniform": _published("ResNet-50", "magnitude", s, NEAR),
                 "variational_dropout": _published("ResNet-50", "variational_dropout", s, NEAR)})
        for s in sparsities)]]
    rows += [[network, *(
        _ranked({"extended": one.loss("magnitude", s, "distribution=extended"),
                 "ERK": one.loss("magnitude", s, "distribution=erk"),
                 "global": one.loss("magnitude", s, "distribution=global"),
                 "uniform": one.loss("magnitude", s),
                 "variational_dropout": one.loss("variational_dropout", s)})
        for s in sparsities)] for network, one in ours.items()]
    return results.markdown(_heading(sparsities), rows)


def second_lives(ours):
    """The masks of magnitude pruning with new weights, and as lottery tickets."""
    rows = [[f"published: {network}", *(
        _ranked({"magnitude": _published(network, "magnitude", s)} | {
            what: [100 * (1 - value / state_of_sparsity.dense(network)) for value in values]
            for what, values in state_of_sparsity.second_lives(network, s).items()})
        for s in MASK_SPARSITIES)] for network in state_of_sparsity.FILES]
    for network, one in ours.items():
        late = {words for technique, _, words in one.losses if technique == "lottery"
                and words and all(word.startswith("rewind_step=") for word in words)}
        cells = []
        for s in MASK_SPARSITIES:
            losses = {t: one.loss(t, s) for t in ("magnitude", *SECOND_LIVES)}
            for words in late:
                losses["lottery, " + ", ".join(words).replace("_", " ").replace("=", " ")] = (
                    one.loss("lottery", s, *words))
            cells.append(_ranked(losses))
        rows.append([network, *cells])
    return results.markdown(_heading(MASK_SPARSITIES), rows)


def places(ours, sparsity=0.9):
    """The sparsity of the first and of the last kernel, where all kernels have `sparsity`."""
    rows = []
    for network, one in ours.items():
        for technique, label, words in (
                ("magnitude", "magnitude, uniform", ()),
                ("magnitude", "magnitude, ERK", ("distribution=erk",)),
                ("magnitude", "magnitude, global", ("distribution=global",)),
                ("variational_dropout", "VD", ()), ("l0", "L0", ()),
                ("continuous_sparsification", "CS", ())):
            kernels = one.layers.get((technique, sparsity, frozenset(words)))
            if kernels:
                ends = one.ends or (list(kernels[0])[0], list(kernels[0])[-1])
                rows.append([network, label, *(
                    f"{statistics.fmean(k[name] for k in kernels):.3f}" for name in ends)])
    return results.markdown(["network", "technique", "first kernel", "last kernel"], rows)


def regularization(ours):
    """BLEU under magnitude pruning, by what else is against overfitting, the best first."""
    sparsities = (0.0, *SPARSITIES[:-1])

    def cell(found):
        return ", ".join(f"{kind} {results.spread(values, '.2f')}" for kind, values in sorted(
            found.items(), key=lambda item: -statistics.fmean(item[1])))

    rows = [["published: Transformer", f"{state_of_sparsity.dense('Transformer'):.2f}", *(
        cell({kind: [value] for kind, value in state_of_sparsity.best_by_regularization(s).items()})
        for s in sparsities[1:])]]
    for network, one in ours.items():
        found = {s: {} for s in sparsities}
        for record in one.records:
            own = record["configuration"]
            cell_of = found.get(own.get("sparsity", 0.0))
            if (own["technique"] in ("dense", "magnitude") and "regularization" in own
                    and cell_of is not None):
                cell_of.setdefault(own["regularization"], []).append(record["report"]["bleu"])
        if any(found.values()):
            rows.append([network, *map(cell, found.values())])
    return results.markdown(["network", "dense", *_heading(sparsities[1:])[1:]], rows)


def headlines(name, folder=results.FOLDER, wanted=0.9):
    """(what, paper, published, ours, settings, its runs) of each network of a recipe that has kept
    runs: at the sparsity that most techniques were run at, and of those the nearest to the wanted
    one. Settings are those of `NETWORKS`."""
    for network, (of_recipe, common) in NETWORKS.items():
        one = Ours(network, folder) if of_recipe == name else None
        if not one or not one.losses:
            continue
        near = max({s for _, s, _ in one.losses}, key=lambda s: (
            sum(one.loss(t, s) is not None for t in LEADERS), -abs(s - wanted)))
        published = "; ".join(
            f"{theirs}: " + _ranked({t: _published(theirs, t, near) for t in LEADERS
                                     if t in state_of_sparsity.FILES[theirs]})
            for theirs in state_of_sparsity.FILES)
        yield (f"techniques at {near:g}, {network}", "Gale et al. 2019",
               f"loss relative to dense, %: {published}",
               "loss relative to dense, %: "
               + _ranked({t: one.loss(t, near) for t in LEADERS}), common, one.records)


TABLES = {"techniques": techniques, "extended": extended, "second lives": second_lives,
          "places": places, "regularization": regularization}


def markdown(folder=results.FOLDER):
    """{name: Markdown} of the tables, of the networks that have kept results."""
    ours = {network: one for network in NETWORKS if (one := Ours(network, folder)).losses}
    return {name: table(ours) for name, table in TABLES.items()}
