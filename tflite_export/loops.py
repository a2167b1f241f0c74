"""How often each graph of a .tflite file runs in one run of the file."""

from tflite_export import flatbuffer

# operator -> the fields of its options that number the graphs it runs
CALLS = {"WHILE": ("bodySubgraphIndex", "condSubgraphIndex"),
         "IF": ("thenSubgraphIndex", "elseSubgraphIndex"), "CALL_ONCE": ("initSubgraphIndex",)}


def runs(model):
    """[how often each graph runs, for every run of those that no operator calls].

    The body of a loop runs as often as the loop turns, where that is a constant of the file, as in
    Keras' recurrent layers, and is counted once elsewhere. Both branches of an IF are counted.
    """
    calls = {}  # graph -> [(the graph that calls it, turns)]
    for number, graph in enumerate(model.subgraphs):
        for op in graph.operators:
            name = flatbuffer.operator(model, op)
            for field in CALLS.get(name, ()):
                called = getattr(op.builtinOptions, field, -1)
                turns = _turns(model, graph, op) if name == "WHILE" else 1
                calls.setdefault(called, []).append((number, turns))

    found = {}

    def count(number):
        if number not in found:
            found[number] = 1  # for those that call each other, which no runtime accepts
            found[number] = sum(turns * count(caller) for caller, turns in calls.get(
                number, ())) or 1
        return found[number]

    return [count(number) for number in range(len(model.subgraphs))]


def _turns(model, graph, loop):
    """The turns of a loop that counts by 1 up to a constant; 1 for another."""
    numbers = [getattr(loop.builtinOptions, field, -1) for field in CALLS["WHILE"]]
    if not all(0 <= number < len(model.subgraphs) for number in numbers):
        return 1
    body, condition = (model.subgraphs[number] for number in numbers)
    places = {int(t): place for place, t in enumerate(condition.inputs)}
    found = []
    for op in condition.operators:
        if flatbuffer.operator(model, op) != "LESS" or len(op.inputs) != 2:
            continue
        place, end = places.get(int(op.inputs[0])), _number(model, condition, op.inputs[1])
        if place is None or end is None or place >= len(loop.inputs) or not _counts(
                model, body, place):
            continue
        start = _number(model, graph, loop.inputs[place])
        if start is not None:
            found.append(end - start)
    return max(1, min(found, default=1))


def _counts(model, body, place):
    """Whether the body of a loop adds 1 to one of its variables."""
    if place >= min(len(body.inputs), len(body.outputs)):
        return False
    before, after = int(body.inputs[place]), int(body.outputs[place])
    return any(
        flatbuffer.operator(model, op) == "ADD" and [int(t) for t in op.outputs] == [after]
        and sorted((int(t) == before, _number(model, body, t) == 1) for t in op.inputs)
        == [(False, True), (True, False)] for op in body.operators)


def _number(model, graph, index):
    """The value of a constant integer; None for anything else."""
    value = flatbuffer.constant(model, graph.tensors[int(index)]) if int(index) >= 0 else None
    return int(value.item()) if value is not None and value.size == 1 and (
        value.dtype.kind == "i") else None
