import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from emovllm.circuit import Circuit, Components
from emovllm.circuit_files import load_circuit, save_circuit
from emovllm.cli import main
from emovllm.emotion import Emotion
from emovllm.errors import ExamplesError, PromptError, RefinementError
from emovllm.fingerprint import fingerprint_distance, fingerprint_entries, site_key
from emovllm.spec import ModelSpec
from emovllm_offline.data import sev
from emovllm_offline.data.examples import Example, load_examples
from emovllm_offline.data.prompts import render
from emovllm_offline.data.styles import Frame
from emovllm_offline.model.control import Control
from emovllm_offline.model.find import find_decoder
from emovllm_offline.refinement.loss import end_of_turn
from emovllm_offline.refinement.refine import Prompts, check_model, refine
from emovllm_offline.refinement.settings import Training
from emovllm_offline.storage import checkpoint
from offline.conftest import DIFFERENT

FRAMES = (Frame(system="reply ."), Frame())
PROMPTS = Prompts(FRAMES)
TRAINING = Training(epochs=3, batch=2, held_out=4, learning_rate=0.3)
REPLIES = {"calm": "it is well .", "pride": "yes ! very very proud", "boredom": "so dull . no"}
EXAMPLES = [
    Example(id=str(i), user=f"my {animal} {does} home {when} .", replies=REPLIES)
    for i, (animal, does, when) in enumerate(
        (animal, does, when) for animal in ("dog", "cat") for does in ("walks", "runs") for when in ("late", "early")
    )
]


@pytest.fixture
def circuit(circuit_of):
    return circuit_of("llama")


def by_control(model, tokenizer, circuit, example, frame, name):
    """Mean negative log-probability of a reply and its end, one token at a time, with the oracle's hooks."""
    prompt = render(tokenizer, frame, example.user).ids
    reply = [*tokenizer(example.replies[name], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    emotion = Emotion(((name, 1.0),), "generation")
    ids = torch.tensor([[*prompt, *reply]])
    with torch.no_grad(), Control(model, circuit).emotion(emotion, len(prompt)):
        scores = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0], -1)
    return -float(np.mean([scores[len(prompt) - 1 + i, token] for i, token in enumerate(reply)]))


def swapped(example):
    """With each emotion's reply given to another one."""
    names, replies = list(example.replies), list(example.replies.values())
    return example.model_copy(update={"replies": dict(zip(names, [*replies[1:], replies[0]], strict=True))})


def measured(model, tokenizer, circuit, examples):
    return {
        name: np.mean(
            [by_control(model, tokenizer, circuit, example, FRAMES[i % 2], name) for i, example in enumerate(examples)]
        )
        for name in circuit.names
    }


@pytest.mark.parametrize("architecture", DIFFERENT)
def test_what_is_fitted_is_what_the_hooks_inject(architecture, tiny, tokenizer, circuit_of):
    model, circuit = tiny(architecture), circuit_of(architecture)
    refined, history = refine(find_decoder(model), tokenizer, circuit, EXAMPLES, replace(TRAINING, epochs=1), PROMPTS)
    held_out = EXAMPLES[::4]
    assert history[0] == pytest.approx(measured(model, tokenizer, circuit, held_out), abs=1e-4)
    best = min(history, key=lambda row: sum(row.values()))
    assert best == pytest.approx(measured(model, tokenizer, refined, held_out), abs=1e-4)


def test_the_anchor_is_what_the_plain_model_predicts_when_asked(decoder, tokenizer, circuit, style):
    training = replace(TRAINING, epochs=1, anchor=0.4)
    _, history = refine(decoder, tokenizer, circuit, EXAMPLES, training, Prompts(FRAMES, style))
    expected = {}
    for name in circuit.names:
        losses = []
        for i, example in enumerate(EXAMPLES[::4]):
            reply = [*tokenizer(example.replies[name], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            asked, plain = (
                render(tokenizer, frame, example.user).ids for frame in (style.emotions[name][0], FRAMES[i % 2])
            )
            with torch.no_grad():
                teacher = decoder.model(torch.tensor([[*asked, *reply[:-1]]])).logits[0, len(asked) - 1 :]
                with Control(decoder.model, circuit).emotion(Emotion(((name, 1.0),), "generation"), len(plain)):
                    steered = decoder.model(input_ids=torch.tensor([[*plain, *reply[:-1]]]), use_cache=False).logits
            known = torch.zeros_like(teacher).scatter(1, teacher.topk(50).indices, 1).bool()
            shares = torch.softmax(teacher.masked_fill(~known, -torch.inf), -1)
            scores = torch.log_softmax(steered[0, len(plain) - 1 :], -1)
            theirs = -(shares * scores).sum(-1).mean()
            ours = -scores[torch.arange(len(reply)), reply].mean()
            losses.append(float(0.6 * ours + 0.4 * theirs))
        expected[name] = np.mean(losses)
    assert history[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("control", ["random-start", "random-units", "residual"])
@pytest.mark.parametrize("architecture", DIFFERENT)
def test_what_a_control_fits_is_what_its_circuit_injects(architecture, control, tiny, tokenizer, circuit_of):
    model, circuit = tiny(architecture), circuit_of(architecture)
    training = replace(TRAINING, epochs=1, control=control)
    refined, history = refine(find_decoder(model), tokenizer, circuit, EXAMPLES, training, PROMPTS)
    best = min(history, key=lambda row: sum(row.values()))
    assert best is history[1], "it is fitted"
    assert best == pytest.approx(measured(model, tokenizer, refined, EXAMPLES[::4]), abs=1e-4)


def test_an_anchor_without_a_style_is_refused(decoder, tokenizer, circuit):
    with pytest.raises(RefinementError, match="needs a style"):
        refine(decoder, tokenizer, circuit, EXAMPLES, replace(TRAINING, anchor=0.5), PROMPTS)


def test_an_anchor_that_asks_for_no_emotion_without_its_replies_is_refused(decoder, tokenizer, circuit, reply_style):
    with pytest.raises(PromptError, match="same in the style forced"):
        refine(decoder, tokenizer, circuit, EXAMPLES, replace(TRAINING, anchor=0.5), Prompts(FRAMES, reply_style))


def test_reply_without_a_chat_template_ends_with_the_end_of_text(decoder, tokenizer):
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    assert end_of_turn(decoder.model, plain, Frame(), "dog") == [tokenizer.eos_token_id]


def test_replies_become_likelier_in_their_emotion_alone(decoder, tokenizer, circuit):
    refined, history = refine(decoder, tokenizer, circuit, EXAMPLES, TRAINING, PROMPTS)
    for name in circuit.names:
        assert min(row[name] for row in history[1:]) < history[0][name] - 0.5, name
    # Of another emotion they do not: the deltas are not a general push towards the replies.
    own = measured(decoder.model, tokenizer, refined, EXAMPLES[::4])
    other = measured(decoder.model, tokenizer, refined, [swapped(example) for example in EXAMPLES[::4]])
    assert all(own[name] < other[name] - 0.5 for name in circuit.names)


def test_units_and_model_stay_the_same(decoder, tokenizer, circuit):
    before = {name: value.clone() for name, value in decoder.model.state_dict().items()}
    refined, _ = refine(decoder, tokenizer, circuit, EXAMPLES, TRAINING, PROMPTS)
    for kind in ("neurons", "heads"):
        for name in circuit.names:
            old, new = getattr(circuit, kind)[name], getattr(refined, kind)[name]
            np.testing.assert_array_equal(old.layer, new.layer)
            np.testing.assert_array_equal(old.index, new.index)
            assert not np.allclose(old.delta, new.delta)
    folded = {site_key(*s): refined.site_delta(*s) @ decoder.projection(*s).T for s in refined.sites()}
    entries = {key: fingerprint_entries(vectors) for key, vectors in folded.items()}
    assert fingerprint_distance(entries, refined.fingerprint) < 1e-5
    assert [(e.recommended, e.maximal, e.scores) for e in refined.spec.emotions] == [(1.0, 2.0, {})] * 3
    for name, value in decoder.model.state_dict().items():
        assert torch.equal(before[name], value)


def test_the_best_epoch_is_kept(decoder, tokenizer, circuit):
    # What is held out has none of the words that are learnt, so that every epoch is worse: what was discovered stays.
    other = dict.fromkeys(REPLIES, "letter road loses a")
    examples = [
        example.model_copy(update={"replies": other}) if i % 4 == 0 else example for i, example in enumerate(EXAMPLES)
    ]
    refined, history = refine(decoder, tokenizer, circuit, examples, replace(TRAINING, learning_rate=5.0), PROMPTS)
    means = [np.mean(list(row.values())) for row in history]
    assert means.index(min(means)) == 0
    for name in circuit.names:
        np.testing.assert_allclose(refined.heads[name].delta, circuit.heads[name].delta, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(refined.neurons[name].delta, circuit.neurons[name].delta, rtol=1e-5, atol=1e-7)


def test_a_scope_that_is_not_fitted_is_refused(decoder, tokenizer, circuit):
    other = replace(circuit, spec=circuit.spec.model_copy(update={"scope": "all"}))
    with pytest.raises(RefinementError, match="scope is all: only `generation` is fitted"):
        refine(decoder, tokenizer, other, EXAMPLES, TRAINING, PROMPTS)


def test_what_is_marked_held_out_is_not_learnt_from(decoder, tokenizer, circuit):
    marked = [example.model_copy(update={"held_out": i in (1, 2)}) for i, example in enumerate(EXAMPLES)]
    # Nor does it matter what they say.
    others = [swapped(example) if example.held_out else example for example in marked]
    training = replace(TRAINING, epochs=1)
    refined, history = refine(decoder, tokenizer, circuit, marked, training, PROMPTS)
    again, _ = refine(decoder, tokenizer, circuit, others, training, PROMPTS)
    assert refined.digest() == again.digest()
    assert history[0] == pytest.approx(measured(decoder.model, tokenizer, circuit, EXAMPLES[1:3]), abs=1e-4)


def test_too_few_messages_are_refused(decoder, tokenizer, circuit):
    with pytest.raises(RefinementError, match="1 messages are too few"):
        refine(decoder, tokenizer, circuit, EXAMPLES[:1])


@pytest.fixture
def command(decoder, tokenizer, circuit, style, tmp_path):
    model = tmp_path / "private" / "model"
    decoder.model.save_pretrained(model)
    tokenizer.save_pretrained(model)
    save_circuit(circuit, tmp_path / "private" / "circuit")
    lines = "".join(example.model_dump_json() + "\n" for example in EXAMPLES)
    (tmp_path / "private" / "mine.jsonl").write_text(lines)
    (tmp_path / "private" / "told.json").write_text(style.model_dump_json())

    def run(*more: str) -> int:
        usual = [
            "--circuit",
            str(tmp_path / "private" / "circuit"),
            "--out",
            str(tmp_path / "out"),
            "--replies",
            str(tmp_path / "private" / "mine.jsonl"),
            "--epochs",
            "2",
        ]
        return main(["refine", str(model), *usual, *more])

    return run


def test_command_writes_a_circuit_that_says_how_it_was_made(command, tmp_path, capsys):
    assert command() == 0
    assert "nats per token" in capsys.readouterr().out
    text = (tmp_path / "out" / "circuit.json").read_text()
    assert "private" not in text
    provenance = json.loads(text)["provenance"]
    (made,) = provenance["refinements"]
    assert made["command"] == ("emovllm refine model --circuit circuit --epochs 2 --replies mine.jsonl")
    assert made["messages"] == 8
    assert len(made["held-out loss"]) == 3
    assert made["from"] == load_circuit(tmp_path / "private" / "circuit").digest()
    assert "style" not in made  # there was no anchor


def test_a_refined_circuit_can_be_refined_again(command, tmp_path):
    assert command() == 0
    again = ("--circuit", str(tmp_path / "out"), "--out", str(tmp_path / "again"), "--anchor", "0.5")
    told = tmp_path / "private" / "told.json"
    assert command(*again, "--anchor-style", str(told)) == 0
    first, second = load_circuit(tmp_path / "again").spec.provenance["refinements"]
    assert second["from"] == load_circuit(tmp_path / "out").digest()
    assert second["command"].endswith("--epochs 2 --anchor 0.5 --replies mine.jsonl --anchor-style told.json")
    assert (first.get("anchor"), second["anchor"]) == (0.0, 0.5)


class Interrupted(Exception):
    """Stands for the process being killed."""


@pytest.mark.parametrize("after", [1, 4, 5, 8])
def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(command, tmp_path, monkeypatch, after):
    assert command("--batch", "2") == 0
    names = ("circuit.json", "circuit.safetensors")
    whole = [(tmp_path / "out" / name).read_bytes() for name in names]
    monkeypatch.setattr(checkpoint.Checkpoint.__init__, "__defaults__", (0.0,))  # saves after every step
    save, saves = checkpoint.Checkpoint.save, []

    def interrupting(self, arrays, done, always=False):
        save(self, arrays, done, always)
        saves.append(done)
        if len(saves) == after:
            raise Interrupted

    monkeypatch.setattr(checkpoint.Checkpoint, "save", interrupting)
    with pytest.raises(Interrupted):
        command("--batch", "2", "--fresh")
    assert command("--batch", "2") == 0
    assert saves == list(range(1, 9))  # four steps an epoch: none is done twice
    # The command that is recorded does not say that a run was begun anew.
    assert [(tmp_path / "out" / name).read_bytes() for name in names] == whole


def test_progress_of_another_training_is_refused(command, capsys):
    assert command() == 0
    assert command("--learning-rate", "0.2") == 2
    error = capsys.readouterr().err
    assert "made with other settings: training;" in error
    assert "start anew with --fresh" in error


def test_a_circuit_of_another_model_is_refused(command, tiny, tokenizer, tmp_path, capsys):
    tiny("qwen2").save_pretrained(tmp_path / "private" / "model")
    assert command() == 2
    assert "the circuit is of another model (tiny)" in capsys.readouterr().err


def test_a_circuit_made_before_mixers_had_heads_is_taken(tiny, circuit_of):
    circuit, decoder = circuit_of("granitemoehybrid"), find_decoder(tiny("granitemoehybrid"))
    layers = [layer.model_dump() for layer in circuit.spec.model.layers]
    for layer in layers:
        if layer["attn"] == "mamba.out_proj":
            layer.update(heads=0, head_dim=0, attn="")
    older = circuit.spec.model.model_dump(exclude={"layers"})
    spec = circuit.spec.model_copy(update={"model": ModelSpec(**older, layers=layers)})
    heads = {}
    for name, units in circuit.heads.items():
        kept = units.layer % 2 == 1
        assert 0 < kept.sum() < len(units)
        heads[name] = Components(units.layer[kept], units.index[kept], units.delta[kept])
    made = Circuit.fingerprinted(spec, circuit.neurons, heads, decoder.projection)
    check_model(made, decoder)
    with pytest.raises(RefinementError, match="is of another model"):
        check_model(made, find_decoder(tiny("granite")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--epochs", "0"), "--epochs must be above 0"),
        (("--learning-rate", "-1"), "--learning-rate must be above 0"),
        (("--held-out", "0"), "--held-out must be above 0"),
        (("--limit", "0"), "--limit must be above 0"),
        (("--anchor", "1.5"), "--anchor must be between 0 and 1"),
        (("--anchor", "0.5", "--anchor-style", "paper"), "style paper has no calm, pride, boredom"),
        (("--replies", "nowhere.jsonl"), "nowhere.jsonl: No such file"),
        (("--circuit", "nowhere"), "nowhere: no such circuit folder"),
    ],
)
def test_options_that_cannot_be_used_are_told(command, capsys, options, message):
    assert command(*options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a", "user": "b", "replies": {}}', "line 2: replies:"),
        ('{"id": "a", "user": "", "replies": {"calm": "c"}}', "line 2: user:"),
        ('{"id": "a", "user": "b", "replies": {"calm": " "}}', "line 2: replies.calm:"),
        ('{"id": "first", "user": "b", "replies": {"calm": "c"}}', "line 2: first is there twice"),
        ("[]", "line 2:"),
    ],
)
def test_a_line_that_is_no_example_is_named(tmp_path, line, message):
    path = tmp_path / "replies.jsonl"
    path.write_text('{"id": "first", "user": "b", "replies": {"calm": "c"}}\n' + line + "\n")
    with pytest.raises(ExamplesError, match=message):
        load_examples(path)


def test_a_missing_emotion_is_named(command, tmp_path, capsys):
    less = EXAMPLES[0].model_copy(update={"id": "less", "replies": {"calm": "it is well ."}})
    with (tmp_path / "private" / "mine.jsonl").open("a") as file:
        file.write(less.model_dump_json() + "\n")
    assert command() == 2
    assert "less has no reply in pride, boredom" in capsys.readouterr().err


def test_packaged_replies_are_what_their_rules_say():
    packaged = load_examples()
    assert len(packaged) == 297
    scenarios = [record.scenario for record in sev.load_sev("sev-test")]
    items = {item.id: item.user for item in sev.expand(sev.load_sev("sev"))}
    choosing = {record.skeleton_id for record in sev.load_sev("sev-dev")}
    held_out = {example.id for example in packaged if example.held_out}
    of_chats = {example_id for example_id in held_out if example_id.startswith("chat_")}
    assert held_out - of_chats == {example.id for example in packaged if example.id.split(".")[0] in choosing}
    assert (len(held_out - of_chats), len(of_chats)) == (len(choosing), 22)
    seen = set()
    for example in packaged:
        assert list(example.replies) == ["anger", "sadness", "happiness", "fear", "surprise", "disgust"]
        assert not any(scenario in example.user for scenario in scenarios), "nothing of the test set"
        assert example.id.startswith(("general_", "chat_")) or items[example.id] == example.user
        for reply in example.replies.values():
            assert reply.isascii()
            assert 10 <= len(reply.split()) <= 34, reply
            assert reply not in seen
            seen.add(reply)
