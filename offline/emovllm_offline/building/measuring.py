"""The stages of a build that measure: the probe, the strengths, another round, and the evaluation."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from pathlib import Path

from emovllm.circuit_files import load_circuit, save_circuit
from emovllm.models import resolve_model
from emovllm.probe import load_probe, save_probe
from emovllm.spec import CircuitSpec
from emovllm_offline.building.costs import REPLY_TOKENS, SAMPLES, STRENGTHS
from emovllm_offline.building.folder import Build, worth
from emovllm_offline.building.making import fit
from emovllm_offline.building.obeyed import scenario
from emovllm_offline.building.parts import labelled, messages, neutral_texts, write_lines
from emovllm_offline.commands.calibrate import CalibrateOptions
from emovllm_offline.commands.evaluate import EvaluateOptions
from emovllm_offline.commands.own_replies import OwnRepliesOptions
from emovllm_offline.commands.probe_train import ProbeTrainOptions
from emovllm_offline.commands.shared import EvaluationOptions
from emovllm_offline.data.messages import Message
from emovllm_offline.evaluation.choice import ENOUGH
from emovllm_offline.evaluation.plan import CIRCUITS, NONE, PROMPTING
from emovllm_offline.judges.judge import READOUT
from emovllm_offline.model.load import config_of, context_of
from emovllm_offline.refinement.settings import OwnRepliesSettings, Sampling

# What a strength may cost in fluency: of each emotion the least within which it shows in half of the replies.
FLUENCY = (2.0, 4.0, 10.0)
# Texts of each label below which no probe is trained on what the model replied.
LEAST_TEXTS = 12
# What an engine is started with where the model could take more: no prompt here is as long.
CONTEXT = 2048


def probe(build: Build) -> None:
    """On the user's texts, on written replies, or on those of the model that were accepted."""
    inputs, settings = build.inputs, build.inputs.settings
    data = settings.probe_data
    if data is None:
        own = [(reply.reply, reply.emotion, scenario(reply.item)) for reply in build.replies() if reply.match]
        rows = labelled(inputs.written, own, inputs.emotions)
        if min(sum(row["label"] == name for row in rows) for name in inputs.emotions) < LEAST_TEXTS:
            build.notes.append(
                f"left out: fewer than {LEAST_TEXTS} texts of an emotion; --probe-data FILE gives labelled ones"
            )
            return
        data = build.place / "probe" / "texts.jsonl"
        write_lines(data, [*rows, *(neutral_texts() if inputs.english else [])])
        build.notes.append(f"on {'written replies' if inputs.written else 'its own replies'}: no person labelled them")
    options = ProbeTrainOptions(
        inputs.model,
        data=data,
        out=build.place / "probe" / "trained",
        limit=build.sizes.texts,
        loading=settings.loading,
    )
    build.run("probe train", options)


def calibrate(build: Build) -> None:
    """Finds the strengths of the circuit, on messages that it did not learn from."""
    found = messages(build.inputs.parts.choose, build.sizes.chosen)
    _calibrate(build, build.found, build.place / "calibrate", found)


def _calibrate(build: Build, source: Path, place: Path, found: list[Message]) -> None:
    """place: the folder of the circuit that is calibrated, and of what that left."""
    circuit = place / "circuit"
    if circuit != source:
        save_circuit(load_circuit(source), circuit)
    if build.probe is not None:
        save_probe(load_probe(build.probe), circuit)
    data = place / "messages.jsonl"
    write_lines(data, map(asdict, found))
    settings = build.inputs.settings
    options = CalibrateOptions(
        build.inputs.model,
        circuit=str(circuit),
        data=str(data),
        strengths=build.sizes.lambdas,
        most_fluency=FLUENCY,
        common=_common(build),
        out=place / "run",
        judge=settings.judge[0],
        judging=settings.judging,
    )
    build.run("calibrate", options)
    build.notes.append(strengths_told(load_circuit(circuit).spec))


def strengths_told(spec: CircuitSpec) -> str:
    """What the strengths of a calibrated circuit cost in fluency, and the emotions that they show in less than half of
    the replies, or for which none will do."""
    none = spec.provenance["calibration"]["uncalibrated"]
    scores = {one.name: one.scores for one in spec.emotions if one.name not in none}
    told = [f"strengths within {FLUENCY[0]:g} times the perplexity of prompted replies"]
    for tighter, bound in itertools.pairwise(FLUENCY):
        if names := [name for name, of in scores.items() if tighter < of["fluency"] <= bound]:
            told.append(f"{', '.join(names)} within {bound:g}")
    if weak := [one.name for one in spec.emotions if scores.get(one.name, {}).get("accuracy", 0.0) < ENOUGH]:
        told.append(f"less than half in {', '.join(weak)}")
    return "; ".join(told)


def again(build: Build) -> None:
    """Another round: the model replies under the calibrated circuit, and learns from the best of that."""
    place, replies = build.place / "again", build.place / "refine" / "replies.jsonl"
    if not replies.exists():
        build.notes.append("left out: nothing was refined")
        return
    options = OwnRepliesOptions(
        build.inputs.model,
        circuit=str(build.place / "calibrate" / "circuit"),
        out=place / "own.jsonl",
        sampling=Sampling(strengths=STRENGTHS, samples=SAMPLES, max_tokens=REPLY_TOKENS),
        settings=OwnRepliesSettings(replies=str(replies), prompt_style=build.asking()),
    )
    build.run("own-replies", options)
    second = place / "refined"
    fit(build, build.place / "calibrate" / "circuit", second, place / "own.jsonl", 2)
    if not build.pays(second):
        return
    _calibrate(build, second, place, messages(build.inputs.parts.choose, build.sizes.chosen))
    taken = build.served == place / "circuit"
    accuracies = [worth(one / "circuit") for one in (build.place / "calibrate", place)]
    told = f"accuracy in calibration {accuracies[0]:.0%} before, {accuracies[1]:.0%} after"
    build.notes.append(f"{told}: {'taken' if taken else 'not taken'}")


def evaluate(build: Build) -> None:
    """On messages that nothing was learnt from or chosen by."""
    inputs = build.inputs
    data, asked = build.place / "evaluate" / "messages.jsonl", messages(inputs.parts.test, build.sizes.tested)
    write_lines(data, map(asdict, asked))
    options = EvaluateOptions(
        inputs.model,
        circuit=str(build.served),
        data=str(data),
        methods=(NONE, PROMPTING, CIRCUITS),
        strengths=(1.0,),
        common=_common(build),
        out=build.place / "evaluate" / "run",
        paper_way=0,
        judge=(*inputs.settings.judge, *([READOUT] if _reads(build) else [])),
        judging=inputs.settings.judging,
    )
    build.run("evaluate", options)
    build.notes.append(f"{len(asked)} messages that nothing was learnt from or chosen by, {REPLY_TOKENS} tokens")


def _reads(build: Build) -> bool:
    """Whether there is a probe of every emotion."""
    return build.probe is not None and set(build.inputs.emotions) <= set(load_probe(build.probe).spec.labels)


def _common(build: Build) -> EvaluationOptions:
    given = build.inputs.settings.engine_args
    longest = context_of(config_of(resolve_model(build.inputs.model)))
    if longest is not None and longest > CONTEXT and "--max-model-len" not in given:
        given = f"--max-model-len {CONTEXT} {given}".strip()
    return EvaluationOptions(prompt_style=build.asking(), max_tokens=REPLY_TOKENS, engine_args=given)
