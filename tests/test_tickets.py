"""Ticket search: what is clamped, counted, rewound and kept between rounds, and searches resumed."""

import json

import keras
import numpy as np
import pytest
from keras import layers, ops

import tf_sparsity as ts

pytestmark = pytest.mark.any_backend

STEPS, EPOCHS = 6, 2  # steps per epoch, epochs of a round
SHAPES = {"conv/kernel": (3, 3, 2, 4), "dense/kernel": (64, 5)}  # 72 and 320 weights


def data():
    rng = np.random.default_rng(0)
    return rng.standard_normal((48, 6, 6, 2)).astype("float32"), rng.integers(0, 5, 48)


def dense_model():
    keras.utils.set_random_seed(1)
    return keras.Sequential([
        keras.Input((6, 6, 2)), layers.Conv2D(4, 3, activation="relu", name="conv"),
        layers.BatchNormalization(name="norm"), layers.Dropout(0.25), layers.Flatten(),
        layers.Dense(5, name="dense")])


def compile(model, optimizer=None, **kwargs):
    model.compile(optimizer or keras.optimizers.SGD(0.1, momentum=0.9),
                  keras.losses.SparseCategoricalCrossentropy(from_logits=True), **kwargs)


def pruning(share=0.2, **kwargs):
    return ts.MagnitudePruning(ts.ConstantSparsity(share, 0), distribution="global", **kwargs)


def annealing(s0=0.05, **kwargs):
    return ts.ContinuousSparsification(s0=s0, **kwargs)


def search_with(method, **kwargs):
    return ts.TicketSearch(method, **{"rounds": 2, "seed": 7, **kwargs})


def fit(search, model=None, compile=compile, epochs=EPOCHS, **kwargs):
    return search.fit(dense_model() if model is None else model, compile, *data(), batch_size=8,
                      epochs=epochs, verbose=0, **kwargs)


def arrays(model):
    optimizer = model.optimizer.variables if model.compiled else []
    return [np.array(ops.convert_to_numpy(v)) for v in model.variables + optimizer]


def greatest_difference(a, b):
    assert [x.shape for x in a] == [x.shape for x in b]
    return max(float(np.abs(x.astype("float64") - y.astype("float64")).max())
               for x, y in zip(a, b) if x.size)


def dense_values(model):
    """{name in layer: array} of what a dense model has too; theta, not the weight."""
    own = {"kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance"}
    return {f"{layer.name}/{v.name}": np.array(ops.convert_to_numpy(v))
            for layer in model.layers for v in layer.variables if v.name in own}


def equal(a, b):
    assert set(a) == set(b) and len(a) == 8  # conv and dense 2 each, BatchNormalization 4
    return all(np.array_equal(a[k], b[k]) for k in a)


class Spy(keras.callbacks.Callback):
    """What each training begins and ends with."""

    def __init__(self):
        super().__init__()
        self.begins, self.ends = [], []

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 0:
            self.begins.append(self.look())

    def on_train_end(self, logs=None):
        self.ends.append(self.look())

    def look(self):
        model, optimizer = self.model, self.model.optimizer
        return {
            "model": model, "optimizer": optimizer,
            "methods": model.get_layer("dense").methods["kernel"],
            "dense": dense_values(model),
            "state": {f"{name}_{key}": np.array(ops.convert_to_numpy(v))
                      for name in ("conv", "dense")
                      for key, v in model.get_layer(name).state["kernel"].items()},
            "momentum": [np.array(ops.convert_to_numpy(v)) for v in optimizer.variables[2:]],
            "iterations": int(ops.convert_to_numpy(optimizer.iterations)),
            "rate": float(ops.convert_to_numpy(optimizer.learning_rate)),
        }


# ---- between rounds


def test_the_clamp_by_hand():
    """beta s = (8, -4, 20, 0.04) is cut at s0 = 0.05."""
    method = ts.ContinuousSparsification(10, s0=0.05)
    model = ts.sparsify(keras.Sequential([keras.Input((2,)), layers.Dense(2)]), method)
    state = model.layers[0].state["kernel"]
    state["s"].assign([[0.04, -0.02], [0.1, 0.0002]])
    state["beta"].assign(200.0)
    (_, slot), = model.layers[0].slots()
    method.next_round([slot])
    np.testing.assert_allclose(state["s"], [[0.05, -4.0], [0.05, 0.04]], rtol=1e-6)
    assert float(state["beta"]) == 1.0


def left_after(method, rounds, select=None):
    """Weights left in conv and dense after each round of pruning, without any training."""
    model = ts.sparsify(dense_model(), ts.FixedMask(), select=select)
    slots = [slot for layer in (model.get_layer("conv"), model.get_layer("dense"))
             for _, slot in layer.slots()]
    found = []
    for number in range(1, rounds + 1):
        method.prune_rest(slots, number)
        found.append([int(np.count_nonzero(slot.state["mask"])) for slot in slots])
    return found


def test_each_round_prunes_its_share_of_what_is_left():
    """By hand, halves to even. Of 392 weights 78.4, of 314 62.8, of 251 50.2 go."""
    assert [sum(n) for n in left_after(pruning(), 3)] == [392 - 78, 314 - 63, 251 - 50]
    uniform = ts.MagnitudePruning(ts.ConstantSparsity(0.2, 0))
    # conv: 14.4, 11.6, 9.2 go; dense: 64, 51.2, 41
    assert left_after(uniform, 3) == [[58, 256], [46, 205], [37, 164]]
    assert left_after(ts.RandomPruning(ts.ConstantSparsity(0.2, 0), seed=1), 3) == [
        [58, 256], [46, 205], [37, 164]]
    # a share for each kernel, as in the first paper: conv 7.2, then 6.5 (to the even 6)
    mapped = ts.MagnitudePruning(ts.ConstantSparsity(0.2, 0), distribution={"conv": 0.1})
    assert left_after(mapped, 2) == [[65, 256], [59, 205]]
    # half of 4 channels of 18 weights, half of 2; of 5 units of 64 weights 2.5, then 1.25 + 2.5
    channels = ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0), pattern="channel")
    assert left_after(channels, 2) == [[36, 192], [18, 64]]


def test_a_small_kernel_keeps_a_weight_whatever_the_share():
    """Of 10 weights 8 go; of the 2 left 0.8 x 2 is 2 again, but one stays, in every round."""
    model = ts.sparsify(keras.Sequential([keras.Input((5,)), layers.Dense(2)]), ts.FixedMask())
    ((_, slot),) = model.layers[0].slots()
    method, left = ts.MagnitudePruning(ts.ConstantSparsity(0.8, 0)), []
    for number in range(1, 4):
        method.prune_rest([slot], number)
        left.append(int(np.count_nonzero(ops.convert_to_numpy(slot.state["mask"]))))
    assert left == [2, 1, 1]


def test_erk_shares_out_the_sparsity_that_is_reached():
    """Of 392 weights 196 and 98 stay, up to the rounding of two kernels; the small conv kernel
    (density factor 12 / 72) stays denser than dense (69 / 320)."""
    erk = ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0), distribution="erk")
    for number, (conv, dense) in enumerate(left_after(erk, 2), 1):
        assert abs(conv + dense - 392 / 2**number) <= 1
        assert conv / 72 != dense / 320


def test_masks_are_nested_and_each_kernel_keeps_a_weight():
    model = ts.sparsify(dense_model(), ts.FixedMask())
    slots = [slot for name in ("conv", "dense") for _, slot in model.get_layer(name).slots()]
    slots[0].theta.assign(slots[0].theta * 1e-3)  # the first to go in a global ranking
    before = [np.ones(slot.kernel.shape) for slot in slots]
    for number in range(1, 6):
        pruning(0.5).prune_rest(slots, number)
        masks = [np.array(ops.convert_to_numpy(slot.state["mask"])) for slot in slots]
        assert all((new <= old).all() for new, old in zip(masks, before))
        before = masks
    # 196, 98, 49, 24.5 -> 24 go, so 25 stay; then 12.5 -> 12 go
    assert masks[0].sum() == 1 and masks[0].sum() + masks[1].sum() == 13


def test_pruning_rewinds_with_a_new_optimizer():
    spy = Spy()
    ticket = fit(search_with(pruning(), rewind_step=4), callbacks=[spy])
    point = dense_values(ticket.rewind_point)
    assert len(spy.begins) == 3 and len({id(b["optimizer"]) for b in spy.begins}) == 3
    assert not equal(spy.begins[0]["dense"], point) and not equal(spy.ends[0]["dense"], point)
    for begin in spy.begins[1:]:
        assert equal(begin["dense"], point)
    for begin, end in zip(spy.begins, spy.ends):
        assert begin["iterations"] == 0 and end["iterations"] == STEPS * EPOCHS
        assert all(not m.any() for m in begin["momentum"])
        assert all(m.any() for m in end["momentum"])
        assert begin["methods"] == ts.FixedMask()
    # 78 and 63 of 392 go, see above; the mask of a round holds while it trains
    assert ticket.sparsities == [78 / 392, 141 / 392]
    for begin, end, zeros in zip(spy.begins, spy.ends, (0, 78, 141)):
        for key in ("conv_mask", "dense_mask"):
            assert np.array_equal(begin["state"][key], end["state"][key])
        assert sum(int((m == 0).sum()) for m in begin["state"].values()) == zeros


def test_the_smallest_of_the_trained_weights_go():
    spy = Spy()
    ticket = fit(search_with(pruning(), rounds=1), callbacks=[spy])
    trained = spy.ends[0]["dense"]
    magnitudes = np.abs(np.concatenate([trained[k].ravel() for k in SHAPES]))
    expected = np.ones(392, bool)
    expected[np.argsort(magnitudes)[:78]] = False
    found = np.concatenate([ticket.masks[k].ravel() for k in SHAPES])
    assert np.array_equal(found, expected)


def test_continuous_sparsification_keeps_weights_and_momentum():
    spy = Spy()
    ticket = fit(search_with(annealing(), rewind_step=4), callbacks=[spy])
    first, second, retrain = spy.begins
    end = spy.ends[0]
    assert equal(second["dense"], end["dense"])
    assert second["optimizer"] is first["optimizer"] and second["iterations"] == 0
    assert end["iterations"] == STEPS * EPOCHS
    assert all(np.array_equal(a, b) for a, b in zip(second["momentum"], end["momentum"]))
    assert all(m.any() for m in second["momentum"])
    for name in ("conv", "dense"):
        s, beta = end["state"][f"{name}_s"], end["state"][f"{name}_beta"]
        assert beta == 200.0 and second["state"][f"{name}_beta"] == 1.0
        assert np.array_equal(second["state"][f"{name}_s"],
                              np.minimum(beta * s, np.float32(0.05)))
    assert spy.ends[1]["state"]["conv_beta"] == 200.0  # annealed anew
    # the ticket: rewound, a new optimizer, the hard mask of the last round
    assert retrain["optimizer"] is not first["optimizer"]
    assert all(not m.any() for m in retrain["momentum"])
    assert equal(retrain["dense"], dense_values(ticket.rewind_point))
    for name in ("conv", "dense"):
        mask = spy.ends[1]["state"][f"{name}_s"] > 0
        assert 0 < mask.sum() < mask.size
        for state in (retrain["state"], spy.ends[2]["state"]):
            assert np.array_equal(state[f"{name}_mask"], mask)
        assert np.array_equal(ticket.masks[f"{name}/kernel"], mask)
    zeros = sum(int((~m).sum()) for m in ticket.masks.values())
    assert ticket.sparsity == ticket.sparsities[-1] == zeros / 392


@pytest.mark.parametrize("method", [pruning(), annealing()], ids=["pruning", "annealing"])
def test_the_ticket(method):
    model = dense_model()
    before = model.get_weights()
    ticket = fit(search_with(method), model)
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), before))
    assert all(np.array_equal(a, b) for a, b in zip(ticket.rewind_point.get_weights(), before))
    assert [len(h["loss"]) for h in ticket.histories] == [EPOCHS] * 3
    assert {k: m.shape for k, m in ticket.masks.items()} == SHAPES
    report = ts.report(ticket.model)
    assert report.step == STEPS * EPOCHS and report.sparsity == ticket.sparsity
    plain = ts.strip(ticket.model)
    assert type(plain.get_layer("dense")) is layers.Dense
    for path, mask in ticket.masks.items():
        kernel = ops.convert_to_numpy(plain.get_layer(path.split("/")[0]).kernel)
        assert np.array_equal(kernel != 0, mask)
    x, y = data()
    np.testing.assert_array_equal(plain.predict(x, verbose=0), ticket.model.predict(x, verbose=0))
    ticket.model.evaluate(x, y, verbose=0)  # it is compiled
    assert "sparsities=[" in repr(ticket)


def test_select_and_a_target_by_rank():
    """Of the 320 weights of dense 240 are zero; conv stays dense."""
    ticket = fit(search_with(annealing(target_sparsity=0.75), rounds=1, select="dense"))
    assert set(ticket.masks) == {"dense/kernel"} and ticket.sparsities == [0.75]


class Halve(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.optimizer.learning_rate = self.model.optimizer.learning_rate * 0.5


def test_learning_rates_begin_anew():
    spy = Spy()
    fit(search_with(annealing()), callbacks=[spy, Halve()])
    assert [b["rate"] for b in spy.begins] == [np.float32(0.1)] * 3
    assert spy.ends[0]["rate"] == np.float32(0.025)
    spy = Spy()

    def scheduled(model):
        rate = keras.optimizers.schedules.ExponentialDecay(0.1, 6, 0.5)
        compile(model, keras.optimizers.SGD(rate, momentum=0.9))
    fit(search_with(annealing()), compile=scheduled, callbacks=spy)
    assert [b["rate"] for b in spy.begins] == [np.float32(0.1)] * 3
    assert spy.ends[1]["rate"] == pytest.approx(0.025)


def test_scaled_losses_and_accumulated_gradients_begin_anew():
    """12 steps a round, 2 for each update: beta is annealed over 6."""
    spy = Spy()

    def accumulating(model):
        inner = keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=2)
        compile(model, keras.optimizers.LossScaleOptimizer(inner))
    fit(search_with(annealing(), rewind_step=3), compile=accumulating, callbacks=spy)
    assert [b["iterations"] for b in spy.begins] == [0, 0, 0]
    assert [e["iterations"] for e in spy.ends] == [6, 6, 6]
    assert spy.begins[1]["methods"].anneal_steps == 6
    assert [e["state"]["conv_beta"] for e in spy.ends[:2]] == [200.0, 200.0]


# ---- the rewind point


def test_rewound_weights_are_those_of_dense_training():
    """An epoch has 6 steps: with rewind_step=6 the oracle is an ordinary fit of one epoch."""
    dense = dense_model()
    compile(dense)
    keras.utils.set_random_seed(7 + 1)
    dense.fit(*data(), batch_size=8, epochs=1, shuffle=False, verbose=0)
    search = search_with(pruning(), rewind_step=6, rounds=1)
    ticket = fit(search, shuffle=False)
    assert equal(dense_values(ticket.rewind_point), dense_values(dense))
    point = search.rewind_point(dense_model(), compile, *data(), batch_size=8, epochs=EPOCHS,
                                shuffle=False, verbose=0)
    assert equal(dense_values(point), dense_values(dense)) and not point.compiled
    assert np.abs(dense_values(point)["norm/moving_mean"]).max() > 0


def test_the_point_within_an_epoch():
    search = search_with(pruning(), rewind_step=8, rounds=1)
    point = search.rewind_point(dense_model(), compile, *data(), batch_size=8, epochs=EPOCHS,
                                verbose=0)
    assert equal(dense_values(fit(search).rewind_point), dense_values(point))
    untrained = search_with(pruning()).rewind_point(dense_model(), compile)
    assert equal(dense_values(untrained), dense_values(dense_model()))


def test_several_searches_from_one_saved_point(tmp_path):
    search_with(annealing(), rewind_step=4).rewind_point(
        dense_model(), compile, *data(), batch_size=8, epochs=1, verbose=0
    ).save(tmp_path / "point.keras")
    point = keras.saving.load_model(tmp_path / "point.keras")
    sparsities = []
    for s0 in (-0.02, 0.05):
        spy = Spy()
        ticket = fit(search_with(annealing(s0, anneal_steps=12), rewind_step=4),
                     rewind_point=point, callbacks=spy)
        for begin in (spy.begins[0], spy.begins[2]):
            assert equal(begin["dense"], dense_values(point))
        assert equal(dense_values(ticket.rewind_point), dense_values(point))
        sparsities.append(ticket.sparsity)
    assert sparsities[0] > sparsities[1]  # less is kept where s starts below 0
    again = fit(search_with(pruning()), rewind_point=ticket.rewind_point)
    assert equal(dense_values(again.rewind_point), dense_values(point))


# ---- resuming


class Stop(Exception):
    pass


class StopIn(keras.callbacks.Callback):
    """Fails in the middle of training number `number`, counted from 1."""

    def __init__(self, number):
        super().__init__()
        self.number, self.count = number, 0

    def on_train_begin(self, logs=None):
        self.count += 1

    def on_train_batch_end(self, batch, logs=None):
        if self.count == self.number and batch == 3:
            raise Stop


slow = pytest.mark.slow


@pytest.mark.parametrize(("method", "number"), [
    pytest.param(pruning(), 2, id="pruning, 2"),
    pytest.param(pruning(), 3, id="pruning, 3", marks=slow),
    pytest.param(annealing(), 1, id="annealing, 1", marks=slow),
    pytest.param(annealing(), 2, id="annealing, 2"),
    pytest.param(annealing(), 3, id="annealing, 3", marks=slow),
    pytest.param(annealing(0.1, target_sparsity=0.5), 2, id="rank, 2", marks=slow)])
def test_an_interrupted_search_goes_on_with_the_same_result(method, number, tmp_path):
    search = search_with(method, rewind_step=4, seed=None)
    keras.utils.set_random_seed(3)
    straight = fit(search)
    with pytest.raises(Stop):
        keras.utils.set_random_seed(3)
        fit(search, directory=tmp_path, callbacks=[StopIn(number)])
    keras.utils.set_random_seed(3 if number == 1 else 4)  # from then on the seed is in the files
    count = StopIn(0)
    resumed = fit(search, directory=tmp_path, callbacks=[count])
    assert count.count == 3 - (number - 1)
    assert resumed.histories == straight.histories
    assert resumed.sparsities == straight.sparsities
    assert greatest_difference(arrays(resumed.model), arrays(straight.model)) == 0.0
    assert equal(dense_values(resumed.rewind_point), dense_values(straight.rewind_point))
    complete = fit(search, directory=tmp_path, callbacks=[count])
    assert count.count == 3 - (number - 1)  # nothing is trained again
    assert greatest_difference(arrays(complete.model), arrays(straight.model)) == 0.0
    assert complete.histories == straight.histories


def test_a_directory_of_another_search(tmp_path):
    model = dense_model()
    fit(search_with(pruning(), rounds=1), model, directory=tmp_path)
    for other, kwargs, text in [
            (search_with(pruning(0.3), rounds=1), {},
             r"search: method\.\S*\.target_sparsity 0.2 there, 0.3 now"),
            (search_with(pruning(), rounds=2), {}, "search: rounds 1 there, 2 now. To go on"),
            (search_with(pruning(), rounds=1, select="conv"), {}, "search: kernels "),
            (search_with(pruning(), rounds=1), {"epochs": 3}, "search: fit.epochs 2 there, 3 now"),
            (search_with(pruning(), rounds=1), {"epochs": np.int64(3)}, "fit.epochs 2 there, 3 n")]:
        with pytest.raises(ValueError, match=text):
            fit(other, model, directory=tmp_path, **kwargs)
    fit(search_with(pruning(), rounds=1), model, directory=tmp_path, epochs=np.int64(2))
    model.layers[0].kernel.assign(model.layers[0].kernel * 2.0)
    with pytest.raises(ValueError, match="search: initial weights .*another directory"):
        fit(search_with(pruning(), rounds=1), model, directory=tmp_path)


def test_a_directory_takes_numpy_s_numbers(tmp_path):
    def fit_with(number):
        search = search_with(pruning(), rounds=number(1), rewind_step=number(0), seed=number(3))
        return fit(search, dense_model(), directory=tmp_path)

    first = fit_with(np.int64)
    assert fit_with(int).histories == first.histories  # the same search, which is complete


def interrupted(directory, *args, compile=compile, **kwargs):
    """A search that stops in its second training, and one that would go on."""
    search, model = search_with(pruning()), dense_model()
    with pytest.raises(Stop):
        search.fit(model, compile, *args, **kwargs, verbose=0, directory=directory,
                   callbacks=[StopIn(2)])

    def go_on(*args, compile=compile, **kwargs):
        return search.fit(model, compile, *args, **kwargs, verbose=0, directory=directory)

    return go_on


def differences(error):
    """The names before "... there, ... now" in an error."""
    text = str(error.value).partition("another search: ")[2].partition(". To go on")[0]
    return [part.split(" ")[0] for part in text.split("; ")]


def test_another_optimizer_data_and_length_are_refused(tmp_path):
    x, y = data()
    go_on = interrupted(tmp_path, x, y, 8, 2)
    with pytest.raises(ValueError, match="holds another search") as error:
        go_on(5 * x, y, 16, 3, compile=lambda model: compile(
            model, keras.optimizers.SGD(0.001, momentum=0.9)))
    assert differences(error) == ["fit.x", "fit.batch_size", "fit.epochs",
                                  "optimizer.config.learning_rate"]
    assert "fit.batch_size 8 there, 16 now" in str(error.value)
    assert "fit.x 'float32 (48, 6, 6, 2) " in str(error.value)

    def other_loss(model):
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9),
                      keras.losses.SparseCategoricalCrossentropy(from_logits=False))
    with pytest.raises(ValueError, match="another search: loss.config.from_logits True there, F"):
        go_on(x, y, 8, 2, compile=other_loss)
    assert len(go_on(y=y, x=x, epochs=2, batch_size=8, shuffle=True).histories) == 3  # by name


def test_nested_data_and_functions(tmp_path):
    x, y = data()
    weights = dict.fromkeys(range(5), 1.0)
    given = {"y": y, "validation_data": (x[:8], y[:8]), "class_weight": weights, "batch_size": 8}

    def turned(number):
        return x[::-1] if number % 2 else x

    go_on = interrupted(tmp_path, turned, **given)
    with pytest.raises(ValueError) as error:
        go_on(x, **{**given, "class_weight": {**weights, 3: 2.0},
                    "validation_data": (x[:8], y[8:16])})
    assert differences(error) == ["fit.x", "fit.validation_data", "fit.class_weight.3"]
    assert len(go_on(turned, **given).histories) == 3


def test_another_version_is_refused(tmp_path):
    go_on = interrupted(tmp_path, *data(), 8, 2)
    file = tmp_path / "search.json"
    record = json.loads(file.read_text())
    backend = keras.config.backend()
    record["arguments"]["versions"][backend] = "0.1"
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"another search: versions.{backend} '0.1' there, '"):
        go_on(*data(), 8, 2)
    for name in ("versions", "fit", "optimizer", "loss"):  # as an earlier release left it
        del record["arguments"][name]
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError) as error:
        go_on(*data(), 8, 2)
    assert differences(error) == ["fit", "optimizer", "loss", "versions"]


def test_arguments_that_fit_lacks():
    with pytest.raises(TypeError, match="unexpected keyword argument 'epoch'"):
        search_with(pruning()).fit(dense_model(), compile, *data(), epoch=2)


# ---- data and callbacks


def test_x_may_be_a_function_of_the_round():
    x, y = data()
    numbers = []

    def batches(number):
        numbers.append(number)
        return ((x[i:i + 8], y[i:i + 8]) for _ in range(EPOCHS) for i in range(0, 48, 8))
    ticket = search_with(pruning()).fit(dense_model(), compile, batches, steps_per_epoch=STEPS,
                                        epochs=EPOCHS, shuffle=False, verbose=0)
    assert numbers == [1, 2, 3] and len(ticket.histories) == 3
    search_with(pruning(), rounds=1).fit(dense_model(), compile, x=batches, epochs=EPOCHS,
                                         steps_per_epoch=STEPS, shuffle=False, verbose=0)
    assert numbers[3:] == [1, 2]


class Order(keras.callbacks.Callback):
    """Sees what is listed before it."""

    def on_epoch_begin(self, epoch, logs=None):
        self.bound = self.model.get_layer("dense").bound


def test_callbacks_pass_through():
    order = Order()
    mine = ts.callbacks.SparsityUpdate()
    fit(search_with(pruning(), rounds=1), callbacks=order, epochs=1)
    assert order.bound is not None
    fit(search_with(pruning(), rounds=1), callbacks=[mine, order], epochs=1)
    assert order.bound is mine.updater  # no second one
    logger = ts.callbacks.SparsityLogger()
    ticket = fit(search_with(pruning(0.5), rounds=1), callbacks=[logger], epochs=1)
    assert [h["sparsity"] for h in ticket.histories] == [[0.0], [0.5]]


# ---- FixedMask and freeze_masks


FREEZABLE = {
    "magnitude": pruning(0.5),
    "annealed": ts.ContinuousSparsification(8, s0=0.02, rescale=True),
    "rank": ts.ContinuousSparsification(8, target_sparsity=0.5),
    "l0": ts.L0Regularization(48, initial_keep=0.0833),
    "dropout": ts.VariationalDropout(48, initial_log_sigma2=-2.0),
}


def frozen(name):
    inputs = keras.Input((5, 8))
    x = layers.LSTM(6, return_sequences=True, name="lstm")(inputs)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    outputs = layers.Dense(3, name="dense")(x)
    model = ts.sparsify(keras.Model(inputs, outputs), FREEZABLE[name])
    model.compile("sgd", "mse")
    x, y = np.random.rand(16, 5, 8), np.random.rand(16, 5, 3)
    model.fit(x, y, batch_size=2, verbose=0, callbacks=[ts.callbacks.SparsityUpdate()])
    return model, ts.freeze_masks(model), x, y


@pytest.mark.parametrize("name", FREEZABLE)
def test_freeze_masks(name):
    model, fixed, x, y = frozen(name)
    assert model.get_layer("dense").methods["kernel"] == FREEZABLE[name]  # untouched
    np.testing.assert_array_equal(fixed.predict(x, verbose=0), model.predict(x, verbose=0))
    before, after = ts.report(model), ts.report(fixed)
    zeros = [row.zeros for row in before.rows]
    assert [row.zeros for row in after.rows] == zeros and 0 < sum(zeros) < before.total("size")
    assert after.step == before.step == 8
    fixed.compile("adam", "mse")
    masks = {p: np.array(m) for p, m in masks_of(fixed).items()}
    history = fixed.fit(x, y, batch_size=2, epochs=2, verbose=0)  # no callback is needed
    assert history.history["loss"][1] < history.history["loss"][0]
    for path, mask in masks_of(fixed).items():
        assert np.array_equal(mask, masks[path])
    for row, n in zip(ts.report(ts.strip(fixed)).rows, zeros):
        assert row.zeros == n


def masks_of(model):
    return {f.kernel.path: ops.convert_to_numpy(f.slot.state["mask"])
            for f in ts.convert.find(model)}


def test_freeze_masks_refuses_and_warns():
    plain = dense_model()
    with pytest.raises(ValueError, match=r"no sparse layer, so it has no masks to freeze"):
        ts.freeze_masks(plain)
    with pytest.raises(TypeError, match="ts.freeze_masks"):
        ts.freeze_masks("model")
    model = ts.sparsify(plain, ts.MagnitudePruning(ts.PolynomialDecay(0.0, 0.5, 0, 10)))
    with pytest.warns(UserWarning, match="schedule at step 0 of 10"):
        ts.freeze_masks(model)
    part = ts.freeze_masks(ts.sparsify(plain, annealing(anneal_steps=None), select="conv"))
    assert type(part.get_layer("dense")) is layers.Dense


# ---- what is refused


@pytest.mark.parametrize(("arguments", "error", "text"), [
    (("cs",), TypeError, r"method must be a tf_sparsity method"),
    ((ts.L0Regularization(10),), ValueError, "L0Regularization has no rounds"),
    ((ts.FixedMask(),), ValueError, "FixedMask has no rounds"),
    ((ts.ContinuousSparsification(10, target_sparsity=0.5, reach="controller", scale=1.0),),
     ValueError, "Leave target_sparsity out: s0 and the rounds decide"),
    ((ts.MagnitudePruning(ts.PolynomialDecay(0.0, 0.5, 0, 10)),), ValueError,
     r"Give ts.ConstantSparsity\(share, begin_step=0\)"),
    ((ts.MagnitudePruning(ts.ConstantSparsity(0.5, 1)),), ValueError, "begin_step=0"),
    ((ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0), pattern="2:4"),), ValueError,
     "Pattern 2:4 fixes the sparsity"),
    ((pruning(revive=True),), ValueError, "lets pruned weights come back"),
    ((pruning(), 0), ValueError, "rounds must be >= 1"),
    ((pruning(), 2.5), TypeError, "rounds must be an integer"),
    ((pruning(), 1, -1), ValueError, "rewind_step must be >= 0"),
    ((pruning(), 1, 0, None, -1), ValueError, "seed must be >= 0"),
])
def test_invalid_arguments(arguments, error, text):
    with pytest.raises(error, match=text):
        ts.TicketSearch(arguments[0], **dict(zip(("rounds", "rewind_step", "select", "seed"),
                                                 arguments[1:])))


def refused(text, error=ValueError, method=None, model=None, compile=compile, **kwargs):
    search = search_with(method or pruning(), rewind_step=kwargs.pop("rewind_step", 0))
    with pytest.raises(error, match=text):
        fit(search, model, compile, **kwargs)


def test_what_fit_refuses():
    refused("'sequential.*' has sparse layers", model=ts.sparsify(dense_model(), ts.FixedMask()))
    refused("compile must be a function", TypeError, compile="sgd")
    refused("compile must call compile on the model", compile=lambda model: None)
    optimizer = keras.optimizers.SGD(0.1)
    refused(r"Put keras.optimizers.SGD\(...\) inside the function",
            compile=lambda model: compile(model, optimizer), epochs=1)
    refused("without ts.SparseOptimizer", compile=lambda model: compile(
        model, ts.SparseOptimizer(keras.optimizers.SGD(0.1), pruning())))
    refused("Give callbacks as a list", TypeError, callbacks=keras.callbacks.CallbackList())
    other = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    refused("rewind_point must have the variables of the model", rewind_point=other)
    refused("as rewind_point", TypeError, rewind_point="point.keras")
    with pytest.raises(ValueError, match="x is an iterator, which one round would use up"):
        search_with(pruning()).fit(dense_model(), compile, iter([data()]))
    with pytest.raises(TypeError, match="tf_keras|expects a keras.Model"):
        search_with(pruning()).fit("model", compile, *data())


@pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning")
def test_a_rewind_step_that_is_not_reached():
    refused("rewind_step=13, but a round has 12 optimizer steps", rewind_step=13)

    def executions(model):
        compile(model, steps_per_execution=3)
    refused("rewind_step=4 lies inside an execution of several steps, which ended at step 6",
            rewind_step=4, compile=executions)
    assert len(fit(search_with(pruning(), rewind_step=6), compile=executions).histories) == 3

    x, y = data()
    with pytest.raises(ValueError, match=r"rewind_step=9, but a round has \d optimizer steps"):
        search_with(pruning(), rewind_step=9).fit(
            dense_model(), compile, lambda number: batches(x, y), shuffle=False, verbose=0)


def batches(x, y):
    """A generator whose length Keras cannot know; on TensorFlow its end counts as a step."""
    for i in range(0, 48, 8):
        yield x[i:i + 8], y[i:i + 8]


def test_an_empty_kernel_is_warned_of():
    with pytest.warns(UserWarning, match="left no weight in dense/kernel. Raise s0"):
        fit(search_with(annealing(-1.0), rounds=1, select="dense"), epochs=1)
