"""From a dense file to the one that is shipped: legalize, store sparse, and predict what it does.

A convolutional network may be rewritten first, exactly, so that XNNPACK can run it sparse; whether
it then does is read from the finished file, for every release that must be right.
"""

from typing import NamedTuple

from tflite_export import flatbuffer, kernels, legalize, names, store, weights, xnnpack
from tflite_export.region import IMAGE_RANK


class Encoded(NamedTuple):
    """A file with its weights stored, and what to expect of it."""

    tflite: bytes  # the bytes given, if nothing was changed
    dense: bytes  # the file that its weights were read from: those given, or rewritten
    sparse: int  # number of weights stored sparse
    notes: tuple = ()  # what was done to the graph, in words
    prediction: xnnpack.Prediction | None = None  # None: no weight is stored sparse
    refused: kernels.Reason | None = None  # why the graph cannot run sparse in XNNPACK

    def runs_sparse(self, runtime):
        """{key of a weight that is stored sparse: None if it runs sparse on every release that
        `runtime` covers, else the kernels.Reason}; without those that are only unpacked, for no
        reason of XNNPACK's."""
        if self.prediction is None:
            return {}
        releases = kernels.GENERATIONS[runtime]
        operators = {op.key: op for op in self.prediction.operators}
        found = {}
        for weight in weights.find(flatbuffer.read(self.tflite)):
            users = [operators[key] for key in weight.computed if key in operators]
            if weight.tensor.sparsity is None or not users:
                continue
            wrong = [(op, g) for op in users for g in releases if op.runs[g] == xnnpack.WRONG]
            slow = [(op, [g for g in releases if op.runs[g] != xnnpack.SPARSE]) for op in users]
            slow = [(op, where) for op, where in slow if where]
            if wrong:
                on = dict.fromkeys(generation for _, generation in wrong)
                op, generation = wrong[0]
                found[weight.key] = kernels.Reason(
                    f"wrong on {', '.join(on)}: {op.why[generation][0]}")
            elif not slow:
                found[weight.key] = None
            elif not pointwise(weight):
                found[weight.key] = NOT_POINTWISE
            elif weight.operator == "CONV_2D":
                op, where = slow[0]
                why, change = op.why[where[-1]]
                reason = kernels.Reason(why or UNPACKED, change)
                if len(where) < len(releases):
                    newer = releases[-1] not in where
                    reason = kernels.Reason(f"not on {', '.join(where)}: {reason.text}",
                                            f"runtime={kernels.NEWER!r}" if newer else change)
                elif self.refused:
                    reason = self.refused
                found[weight.key] = reason
        return found

    def no_convolution_runs_sparse(self, runtime):
        """Whether a 1x1 convolution in float32 of a network that sees a picture is stored sparse,
        and no covered release runs one sparse; whoever asks for int8 kernels, or has a network that
        no release runs sparse, knows that they are dense."""
        if self.prediction is None:
            return False
        stored = any(weight.tensor.sparsity is not None and weight.operator == "CONV_2D"
                     and pointwise(weight) and weight.activations == "float32"
                     and any(len(weight.graph.tensors[t].shape) == IMAGE_RANK
                             for t in weight.graph.inputs)
                     for weight in weights.find(flatbuffer.read(self.tflite)))
        return stored and not any(
            op.kind == "CONV_2D" and op.runs[generation] == xnnpack.SPARSE
            for op in self.prediction.operators for generation in kernels.GENERATIONS[runtime])


def pointwise(weight):
    """Whether a weight is a matrix: of a dense layer or of a 1x1 convolution."""
    return weight.operator in ("FULLY_CONNECTED", "CONV_2D") and weight.value.shape[1:-1] in (
        (), (1, 1))


NOT_POINTWISE = kernels.Reason("unpacked when the file is loaded; XNNPACK runs 1x1 convolutions "
                               "sparse, and no others")
UNPACKED = "unpacked when the file is loaded, computed with its zeros"


class Covered(NamedTuple):
    """What one generation of runtimes is expected to do with a file."""

    generation: str
    verdict: str  # "sparse", "dense" or "wrong"
    why: str  # it is not "sparse"

    def __str__(self):
        return f"{self.generation}: {self.verdict}{', ' if self.why else ''}{self.why}"


def joined(releases):
    """(Covered, ...) with those in one that have the same verdict for the same reason."""
    groups = {}
    for one in releases:
        groups.setdefault((one.verdict, one.why), []).append(one.generation)
    return tuple(
        Covered("all releases" if len(groups) == 1 < len(found) else ", ".join(found), *said)
        for said, found in groups.items())


def covered(encoded, rows, runtime):
    """(Covered, ...) of the releases that `runtime` names.

    Args:
        encoded: Encoded.
        rows: layers.LayerReports of it.
        runtime: one of kernels.RUNTIMES.
    """
    picture = any("CONV" in row.operator for row in rows)
    layer = next((row.why for row in rows if row.stored_sparse and not row.runs_sparse), "")
    found, releases = [], kernels.GENERATIONS[runtime]
    if encoded.prediction and xnnpack.WRONG in map(encoded.prediction.runtimes.get, releases):
        layer = UNPACKED  # a row says what is wrong, which the other releases do not do
    refused = encoded.refused
    if encoded.prediction and any(encoded.prediction.runtimes[g] == xnnpack.SPARSE
                                  for g in releases):
        refused = None  # the graph can run sparse
    for generation in releases:
        if encoded.prediction is None:
            found.append(Covered(generation, xnnpack.DENSE, "no weight is stored sparse"))
            continue
        verdict, why = encoded.prediction.runtimes[generation], ""
        reasons = [reason for reason in encoded.prediction.reasons
                   if generation in reason.runtimes]
        if verdict == xnnpack.WRONG:  # reasons for that come first
            why = names.short_in(f"{reasons[0].operator}: {reasons[0].text}")
        elif verdict == xnnpack.DENSE and picture:
            why = names.short_in(refused.text if refused else
                                 f"{reasons[0].operator}: {reasons[0].text}")
        elif verdict == xnnpack.DENSE:
            why = layer
        found.append(Covered(generation, verdict, why))
    return tuple(found)


def look(tflite):
    """The Encoded of a file that is written already, by anyone."""
    count = sum(weight.tensor.sparsity is not None
                for weight in weights.find(flatbuffer.read(tflite)))
    return Encoded(tflite, tflite, count, prediction=xnnpack.predict(tflite))


def encode(tflite, policy, *, rotate_input=True):
    """A dense file with its weights stored as `policy` says.

    Args:
        tflite: bytes.
        policy: store.Policy.
        rotate_input: as for legalize.legalize.

    Returns:
        Encoded. "auto" and "speed" rewrite the graph where that lets more of it run sparse; "size"
        only where some release would else compute it wrongly.

    Raises:
        ValueError: some release of the runtime would compute the sparse file wrongly; the sentence
            names the operator, and what to change.
    """
    refused = None
    plain = _stored(tflite, policy)
    if (policy.sparse is False or not kernels.GENERATIONS[policy.runtime]
            or plain.sparse == 0 and policy.sparse != "speed"):
        return plain
    candidates = [plain]
    try:
        legal = legalize.legalize(tflite, rotate_input=rotate_input)
    except legalize.CannotLegalize as error:
        refused = kernels.Reason(names.short_in(str(error)).removesuffix("."), error.change)
    else:
        if legal.notes:
            candidates.append(_stored(legal.tflite, policy)._replace(notes=legal.notes))
    wrong = [_wrong(candidate, policy) for candidate in candidates]
    right = [candidate for candidate, text in zip(candidates, wrong) if text is None]
    if not right:
        why = f" The graph cannot be rewritten for it: {refused.text}." if refused else ""
        raise ValueError(f"{wrong[0]}{why} sparse=False writes the file dense.")
    best = right[0] if policy.sparse == "size" else max(
        right, key=lambda one: _count(one, policy))  # the first, of equal ones
    if len(candidates) == 2 and best is plain and policy.sparse != "size":
        refused = _why_dense(candidates[1], policy, wrong[1])  # though rewritten
    return best._replace(refused=refused)


def _stored(tflite, policy):
    """Encoded, without legalizing. "speed" first looks what would run sparse."""
    if policy.sparse == "speed":
        everything = _stored(tflite, policy._replace(sparse="auto"))
        runs = everything.runs_sparse(policy.runtime)
        fast = frozenset(key for key, reason in runs.items() if reason is None)
        policy = policy._replace(fast=fast)
    stored = store.store(tflite, policy)
    prediction = xnnpack.predict(stored.tflite) if stored.sparse else None
    return Encoded(stored.tflite, tflite, stored.sparse, prediction=prediction)


def _wrong(encoded, policy):
    """What some covered release would do wrongly, as a sentence; None if nothing."""
    releases = kernels.GENERATIONS[policy.runtime]
    for reason in encoded.prediction.reasons if encoded.prediction else ():
        if reason.verdict == xnnpack.WRONG and set(reason.runtimes) & set(releases):
            return (f"{reason.operator} would be wrong on {', '.join(reason.runtimes)}: "
                    f"{reason.text}.")
    return None


def _why_dense(encoded, policy, wrong):
    """The kernels.Reason for which the newest release that `policy` covers runs no convolution
    sparse, or for which the file is not used."""
    newest = kernels.GENERATIONS[policy.runtime][-1]
    if wrong is not None:
        sparse = encoded.prediction.runtimes[newest] == xnnpack.SPARSE
        return kernels.Reason("rewritten for it, " + names.short_in(wrong).removesuffix("."),
                              f"runtime={kernels.NEWER!r}" if sparse else None)
    reasons = encoded.prediction.reasons if encoded.prediction else ()
    return next((kernels.Reason(names.short_in(f"{reason.operator}: {reason.text}"), reason.change)
                 for reason in reasons if newest in reason.runtimes), None)


def _count(encoded, policy):
    """How many weights XNNPACK runs sparse on all releases that `policy` covers, and how many
    operators on each, together."""
    everywhere = sum(reason is None for reason in encoded.runs_sparse(policy.runtime).values())
    operators = encoded.prediction.operators if encoded.prediction else ()
    return everywhere, sum(op.runs[generation] == xnnpack.SPARSE for op in operators
                           for generation in kernels.GENERATIONS[policy.runtime])
