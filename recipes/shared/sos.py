"""The State of Sparsity's experiments on one network: techniques at a sparsity, and what becomes of
their masks (Gale, Elsen and Hooker 2019, arXiv:1902.09574, and its code,
google-research/google-research, state_of_sparsity).

All techniques start at the same initial weights and see the same batches, for the same seed.

- dense: no sparsity. random, magnitude: pruned along the cubic schedule; pruned weights may return
  under magnitude (`revive`), as in the paper's code.
- variational_dropout, l0, continuous_sparsification: learned; by rank they keep exactly as many
  weights as asked when training is over. Training does not see how many, so that one training, that
  of sparsity `RANKED_AT`, serves all of them. Statistics of batch normalization are estimated anew
  for what is left.
- scratch_e, scratch_b: the masks of the magnitude run with the same settings, other initial
  weights, and the same budget or `BUDGET` times as much with the schedule stretched.
- lottery: the same masks, the initial weights, or those after `rewind_step` steps.

A technique that is added stands in `PRUNED` or `LEARNED`, in `method`, in `only=` of the settings
that it has, in `usual` of the two full-scale recipes, in the grids that run it, and in `LEADERS`,
`SHORT_NAMES` and `places` of recipes/reporting/findings.py.
"""

import dataclasses
import math
import re
from collections.abc import Callable

import keras
import numpy as np

import tf_sparsity as ts
from recipes.reporting import results
from recipes.running.configuration import setting
from recipes.running.files import read_arrays
from recipes.running.training import (Batches, Order, estimate_statistics, for_fit,
                                      ranked_anew)

PRUNED = ("random", "magnitude")
LEARNED = ("variational_dropout", "l0", "continuous_sparsification")
SCRATCH = ("scratch_e", "scratch_b")
UNDER_A_MASK = (*SCRATCH, "lottery")
BY_SCHEDULE = (*PRUNED, *UNDER_A_MASK)  # a mask is that of a magnitude run
SPARSE = (*PRUNED, *LEARNED, *UNDER_A_MASK)
TECHNIQUES = ("dense", *SPARSE)

RANKED_AT = 0.9  # the sparsity whose run holds the training that all others are ranked from
SCRATCH_SEED = 1000  # added to the seed for the weights that scratch runs begin with
BUDGET = 2  # of scratch_b: the time multiplier in rn50_scratch_lr_scaled.csv
FEW = 5  # updates of a schedule, up to which a run says so
LAST_SPARSITY = 0.8  # of the last layer under "extended", as in the paper's code


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the recipes of the paper have in common; each sets its own defaults."""

    technique: str = setting("magnitude", "how the network becomes sparse", choices=TECHNIQUES)
    sparsity: float = setting(0.9, "fraction of zeros of all kernels", least=0, below=1,
                              only=SPARSE)
    distribution: str = setting("uniform", "how the zeros are shared out among the kernels",
                                choices=("uniform", "erk", "global", "extended"), only=BY_SCHEDULE)
    initialization: str = setting("plain", "initial weights of a scratch run",
                                  choices=("plain", "augmented"), only=SCRATCH)
    rewind_step: int = setting(0, "optimizer step whose weights the ticket starts at", least=0,
                               only=("lottery",))
    reach: str = setting("rank", "how the sparsity is met; penalty: it is what that leads to; "
                         "controller: with hard gates for l0",
                         choices=("rank", "controller", "penalty"), only=LEARNED)
    seed: int = setting(0, "of initial weights, order of the data and noise", least=0,
                        most=2 ** 32 - 1 - SCRATCH_SEED)
    holdout: int = setting(0, "training images kept out, to choose settings by", least=0)
    epochs: int = setting(10, "of one training", least=1)
    batch: int = setting(100, "examples in a step", least=1)
    rate: float = setting(1e-3, "learning rate at the start", least=0)
    pruning_begin: float = setting(0.1, "share of the run at which pruning begins", least=0, most=1,
                                   only=BY_SCHEDULE)
    pruning_end: float = setting(0.7, "share of the run at which it ends", least=0, most=1,
                                 only=BY_SCHEDULE)
    frequency: int = setting(None, "steps between two updates; without it a controller makes 200 "
                             "in a run", least=1, only=SPARSE)
    warm_up: float = setting(0.2, "share of the run in which the penalty rises", least=0, most=1,
                             only=("variational_dropout", "l0"))
    scale: float = setting(1.0, "of the penalty, times 1 / training examples", least=0,
                           only=("variational_dropout", "l0"))
    initial_keep: float = setting(0.9, "sigmoid of log alpha at first, near the mean of a gate",
                                  least=0.01, most=0.99009, only=("l0",))
    annealing: float = setting(0.9, "share of the run in which the mask becomes a step", least=0,
                               most=1, only=("continuous_sparsification",))
    s0: float = setting(0.0, "where the gates start", only=("continuous_sparsification",))
    gate_penalty: float = setting(1e-8, "of each open gate", least=0,
                                  only=("continuous_sparsification",))

    def __post_init__(self):
        for name, value in self.usual().items():
            # A controller makes as many updates as it needs, if frequency stays None
            if getattr(self, name) is None and not (name == "frequency" and self.controlled):
                object.__setattr__(self, name, value)

    def usual(self):
        """{setting: value}, by technique and sparsity, of the settings whose default is None."""
        return {}

    @property
    def controlled(self):
        """Does a controller steer the training?"""
        return self.technique in LEARNED and self.reach == "controller"

    def rise(self, steps):
        """How the penalty of variational dropout and L0 rises, in a run of so many steps."""
        return ts.Ramp(0, max(1, round(self.warm_up * steps)))

    def noise(self):
        """Arguments of variational dropout beside its penalty."""
        return {}


@dataclasses.dataclass(frozen=True)
class PublishedSettings(Settings):
    """With what the paper varies on its own two networks."""

    warm_up_begin: float = setting(0.0, "share of the run at which the penalty begins to rise",
                                   least=0, below=1, only=("variational_dropout", "l0"))
    ramp: str = setting("linear", "cubic: 1 - (1 - t)^3 of the rise's time t",
                        choices=("linear", "cubic"), only=("variational_dropout", "l0"))
    threshold: float = setting(3.0, "log alpha from which a weight is zero",
                               only=("variational_dropout",))
    log_sigma2: float = setting(-10.0, "at the start", only=("variational_dropout",))

    def rise(self, steps):
        begin = round(self.warm_up_begin * steps)
        return ts.Ramp(begin, max(begin + 1, begin + round(self.warm_up * steps)),
                       power={"linear": 1, "cubic": 3}[self.ramp])

    def noise(self):
        return {"threshold": self.threshold, "initial_log_sigma2": self.log_sigma2}


@dataclasses.dataclass(frozen=True)
class Task:
    """A network, its data, how it is trained and what it is judged by.

    Attributes:
      network: a function that builds it, with new initial weights.
      batches: the training data, in an order of (seed, epoch): what `training.for_fit` takes, with
        `begin(epoch)`, `len` (steps of an epoch) and `examples`, the number of training examples.
      validation: what `fit` looks at after each epoch, for the record.
      compile: a function (model, steps of the run) that compiles it, with a new optimizer.
      figures: a function of a trained model -> what it is judged by, {name: number}.
      last: regular expression of the kernels that "extended" prunes to `LAST_SPARSITY` at most;
        None where there is no such rule.
      first: of those that it leaves dense, or None.
      others: {sparsity: that of all other kernels}, as published; it is solved for elsewhere.
    """

    network: Callable
    batches: object
    validation: object
    compile: Callable
    figures: Callable
    last: str | None = None
    first: str | None = None
    others: dict = dataclasses.field(default_factory=dict)


def images(c, network, train, test, optimizer, last, first=None, augment=None):
    """The task of telling what class an image is of.

    Args:
      c: the configuration.
      network, last, first: as in `Task`; the network returns logits.
      train, test: (images, classes).
      optimizer: a function (configuration, steps of the run) -> a new Keras optimizer.
      augment: as in `Batches`.
    """
    train, kept_out = held_out(train, c.holdout)

    def compile(model, steps):
        model.compile(optimizer(c, steps),
                      keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                      metrics=["accuracy"])

    def figures(model):
        found = {"accuracy": accuracy(model, test)}
        if kept_out is not None:
            found["holdout_accuracy"] = accuracy(model, kept_out)
        return found

    return Task(network, Batches(*train, c.batch, c.seed, augment), kept_out or test, compile,
                figures, last, first)


def perform(c, run, task):
    """Does what the configuration asks for; returns the final report."""
    if c.technique in LEARNED and c.reach == "rank" and c.sparsity != RANKED_AT:
        return _ranked_anew(c, run, task)
    epochs = c.epochs * (BUDGET if c.technique == "scratch_b" else 1)
    steps = epochs * len(task.batches)
    model = _starting_point(c, run, task, steps)
    task.compile(model, steps)
    run.fit(model, task.batches, task.validation, epochs)
    if c.technique == "magnitude":
        run.keep("masks.npz", lambda path: np.savez_compressed(path, **masks(model)))
    if c.technique in LEARNED and c.reach == "rank":
        run.keep("trained.npz", lambda path: np.savez(path, *map(np.asarray, model.weights)))
        estimate_statistics(model, task.batches)
    return report(model, task) | {"steps": steps}


def held_out(train, count, what="images"):
    """`(training examples, those kept out or None)`; `train` is a tuple of equally long columns."""
    if not count:
        return train, None
    if count >= len(train[0]):
        raise ValueError(f"holdout={count}: there are {len(train[0])} training {what}.")
    return tuple(a[:-count] for a in train), tuple(a[-count:] for a in train)


def _starting_point(c, run, task, steps):
    """The model before its first step, sparsified, uncompiled."""
    keras.utils.set_random_seed(c.seed)
    model = task.network()
    if c.technique == "dense":
        return model
    if c.technique in UNDER_A_MASK:
        return _under_a_mask(c, run, task, model, steps)
    return ts.sparsify(model, method(c, steps, model, task))


# ---- techniques


def method(c, steps, model, task):
    """The method of a technique, for a run of so many steps."""
    if c.technique in PRUNED:
        return _pruning(c, steps, model, task)
    asked = {} if c.reach == "penalty" else {
        "target_sparsity": c.sparsity, "reach": c.reach, "frequency": c.frequency}
    if c.technique == "continuous_sparsification":
        return ts.ContinuousSparsification(max(1, round(c.annealing * steps)), s0=c.s0,
                                           scale=c.gate_penalty, **asked)
    asked |= {"scale": c.scale, "ramp": c.rise(steps)}
    if c.technique == "l0":
        # Sampled gates end near 0 under the controller, and the network near chance
        return ts.L0Regularization(task.batches.examples, initial_keep=c.initial_keep,
                                   hard_mask=c.controlled, **asked)
    if c.technique == "variational_dropout":
        return ts.VariationalDropout(task.batches.examples, **c.noise(), **asked)
    raise ValueError(f"technique={c.technique} has no method here.")


def _pruning(c, steps, model, task):
    if c.pruning_begin >= c.pruning_end:
        raise ValueError(f"pruning_begin={c.pruning_begin:g} must be below "
                         f"pruning_end={c.pruning_end:g}.")
    sparsity, distribution = c.sparsity, c.distribution
    if distribution == "extended":
        if task.last is None:
            raise ValueError("distribution=extended is the paper's rule for ResNet-50. Use "
                             "uniform, erk or global here.")
        sizes = {row.name: row.size for row in ts.report(model).rows}
        sparsity, distribution = extended(sizes, c.sparsity, task.first, task.last,
                                          task.others.get(c.sparsity))
    begin = round(c.pruning_begin * steps)
    end = max(begin + 1, round(c.pruning_end * steps))
    updates = 1 + -(-(end - begin) // c.frequency)
    if updates <= FEW:
        way = "give a smaller one" if c.frequency > 1 else "train longer"
        print(f"frequency={c.frequency}: {updates} updates prune all, in steps {begin} to {end}; "
              f"{way}", flush=True)
    schedule = ts.PolynomialDecay(0.0, sparsity, begin, end, frequency=c.frequency)
    if c.technique == "random":
        return ts.RandomPruning(schedule, distribution=distribution, seed=c.seed)
    if c.technique == "magnitude":
        return ts.MagnitudePruning(schedule, distribution=distribution, revive=True)
    raise ValueError(f"technique={c.technique} has no method here.")


def extended(sizes, sparsity, first, last, others=None):
    """The paper's extended magnitude pruning: `(sparsity of the other kernels, map)`.

    The first kernels stay dense and the last are pruned to 0.8 (or to the sparsity, if that is
    less), so that the others must be sparser for all of them together to meet the sparsity. The
    paper rounds that number.

    Args:
      sizes: {kernel path: number of weights}.
      sparsity: fraction of zeros of all of them, in [0, 1).
      first, last: regular expressions; first may be None.
      others: the sparsity of the others where it is published; None: it is solved for.

    Raises:
      ValueError: if the others would have to be empty.
    """
    fixed = {last: min(LAST_SPARSITY, sparsity)} | ({first: 0.0} if first else {})
    if others is not None:
        return others, fixed
    of = {path: next((s for pattern, s in fixed.items() if re.search(pattern, path)), None)
          for path in sizes}
    zeros = sparsity * sum(sizes.values()) - sum(
        sizes[path] * s for path, s in of.items() if s is not None)
    size = sum(sizes[path] for path, s in of.items() if s is None)
    if zeros >= size:
        raise ValueError(
            f"distribution=extended cannot reach a sparsity of {sparsity:g} here: {first or last} "
            "would keep more weights than that leaves. Use erk or global, or a lower sparsity.")
    return zeros / size, fixed


# ---- under the masks of another run


def masks(model):
    """{kernel path: boolean array, True where a weight is kept}."""
    return {f"{layer.name}/{name}": np.asarray(state["mask"]) != 0
            for layer in model.layers if isinstance(layer, ts.layers.SparseLayer)
            for name, state in layer.state.items()}


def _under_a_mask(c, run, task, model, steps):
    begin = round(c.pruning_begin * steps)
    if c.rewind_step > begin:  # before the run that has the mask is made
        raise ValueError(
            f"rewind_step={c.rewind_step} comes after pruning begins (step {begin} of {steps}), so "
            "that the dense weights of that step are not those of the run that the masks come "
            "from. Rewind to an earlier step, or give a larger pruning_begin or more epochs.")
    magnitude = run.of(dataclasses.replace(c, technique="magnitude"))
    if c.technique in SCRATCH:
        keras.utils.set_random_seed(c.seed + SCRATCH_SEED)
        model = task.network()
        if c.initialization == "augmented":
            augment_initial_weights(model, _kept(magnitude), c.seed + SCRATCH_SEED)
    elif c.rewind_step:
        model = _after(c, run, task, model, steps)
    sparse = ts.sparsify(model, ts.FixedMask())
    for path, keep in _kept(magnitude).items():
        layer, name = path.split("/", 1)
        sparse.get_layer(layer).state[name]["mask"].assign(keep.astype("float32"))
    return sparse


def _kept(run):
    """The masks of a run, as `masks` gives them."""
    return _arrays(run.folder / "masks.npz")


def _arrays(path):
    return read_arrays(path, f"Remove {path.parent}; that run is made anew then.")


def _after(c, run, task, model, steps):
    """The network after `rewind_step` steps of dense training; a run that goes on has them kept."""
    path = run.folder / "rewind_point.npz"
    if not path.exists():
        search = ts.TicketSearch(ts.MagnitudePruning(ts.ConstantSparsity(c.sparsity, 0)), rounds=1,
                                 rewind_step=c.rewind_step, seed=c.seed)
        task.batches.begin(0)
        point = search.rewind_point(
            model, lambda m: task.compile(m, steps), **for_fit(task.batches), epochs=c.epochs,
            verbose=0, callbacks=[Order(task.batches)])
        run.keep(path.name, lambda new: np.savez(new, *map(np.asarray, point.weights)))
    for variable, value in zip(model.weights, _arrays(path).values(), strict=True):
        variable.assign(value)
    return model


def augment_initial_weights(model, kept, seed):
    """The paper's "sparse" initial weights: variances of the fans that a mask leaves.

    Dense kernels: U(-L, L), L = sqrt(6 / ((1 - s) (fan in + fan out))). Convolutions: N(0, 2 / n),
    n = places x filters (1 - s). Embeddings: N(0, 1 / (features (1 - s))). 1 - s is the share that
    the kernel's mask keeps; the paper's masks keep the same share of every kernel.

    Args:
      model: dense; its layers are named as in `kept`.
      kept: {kernel path: boolean array}, as `masks` gives it.
      seed: integer >= 0.
    """
    for index, layer in enumerate(model.layers):
        generator = np.random.default_rng([seed, index])
        for name in ("kernel", "embeddings"):
            if f"{layer.name}/{name}" not in kept:
                continue
            variable, share = getattr(layer, name), float(kept[f"{layer.name}/{name}"].mean())
            shape = tuple(variable.shape)
            if name == "embeddings":
                values = generator.normal(0, 1 / math.sqrt(shape[1] * share), shape)
            elif len(shape) == 2:
                limit = math.sqrt(6 / (share * sum(shape)))
                values = generator.uniform(-limit, limit, shape)
            else:
                fan_out = shape[0] * shape[1] * shape[3] * share
                values = generator.normal(0, math.sqrt(2 / fan_out), shape)
            variable.assign(values)


# ---- learned methods, by rank


def _ranked_anew(c, run, task):
    """The training of another sparsity, ranked for this one."""
    source = run.of(dataclasses.replace(c, sparsity=RANKED_AT))
    steps = c.epochs * len(task.batches)
    network = task.network()
    model = ts.sparsify(network, method(c, steps, network, task))
    ranked_anew(model, _arrays(source.folder / "trained.npz").values())
    estimate_statistics(model, task.batches)
    return report(model, task) | {"steps": steps, "trained_in": source.digest}


# ---- figures


def report(model, task):
    """The final figures of a trained model, for JSON."""
    found = ts.report(model)
    return {**task.figures(model), "sparsity": found.sparsity, "natural": found.natural,
            "size": found.total("size"), "zeros": found.total("zeros"),
            "compression": results.compression(found), "kernels": results.kernels(found)}


def accuracy(model, examples):
    """The fraction of the images that get their class."""
    images, classes = examples
    return float((model.predict(images, batch_size=500, verbose=0).argmax(-1) == classes).mean())
