import itertools
import json
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch

from emovllm.cli import main
from emovllm.errors import FindingsError, PromptError, ResultsError, StoredError
from emovllm_offline.data.prompts import Prompt, render
from emovllm_offline.data.sev import expand
from emovllm_offline.discovery.activations import collect
from emovllm_offline.discovery.findings import Findings
from emovllm_offline.model.hooks import before, hooked
from emovllm_offline.validation import validate
from emovllm_offline.validation import variants as protocol
from emovllm_offline.validation.plan import Plan, Settings
from emovllm_offline.validation.results import FILE, Validation
from emovllm_offline.validation.sweeps import KINDS, MODES, SITES, Units, Variant, random_ranking, ranking, sweep

NAMES = ("calm", "pride", "boredom")
# Few, so that the tests are quick.
PLAN = Plan(neurons=(4, 16, "all"), heads=(1, 2, "all"), scale=0.7, seeds=2)


def made_findings(decoder, names=NAMES) -> Findings:
    """Findings of the right shapes without a discovery."""
    rng = np.random.default_rng(5)
    count, layers = len(names), len(decoder.layers)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape)

    def unit(*shape: int) -> np.ndarray:
        vectors = normal(*shape)
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    return Findings(
        emotions=names,
        groups=6,
        attn_directions=unit(count, layers, decoder.hidden_size),
        mlp_directions=unit(count, layers, decoder.hidden_size),
        neurons=normal(count, layers, decoder.intermediate_size),
        heads=normal(count, layers, decoder.num_heads),
        mlp_delta=normal(count, layers, decoder.intermediate_size) * 0.3,
        attn_delta=normal(count, layers, decoder.num_heads * decoder.head_dim) * 0.3,
        sigma=np.ones(2 * layers),
        importance=normal(count, 2 * layers),
        similarity=np.eye(2 * layers),
    )


@pytest.fixture
def findings(decoder) -> Findings:
    return made_findings(decoder)


@pytest.fixture
def validated(decoder, tokenizer, findings, records, style, tmp_path):
    """Validates in a folder of the test, without a circuit; arguments replace the usual ones."""

    def run(folder="work", **changes):
        usual = {"findings": findings, "records": records, "styles": [style], "plan": PLAN} | changes
        inputs = [usual.pop(name) for name in ("findings", "records", "styles")]
        circuit = usual.pop("circuit", None)
        return validate.validate(decoder, tokenizer, *inputs, tmp_path / folder, Settings(**usual), circuit)

    return run


def some_ids(length: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, 128, (length,), generator=torch.Generator().manual_seed(length)).tolist())


def last(length: int) -> Prompt:
    return Prompt(some_ids(length), range(length - 1, length))


def all_variants(sources: int, neurons=(0, 3, 64), heads=(0, 1, 4)) -> list[Variant]:
    ks = {"neurons": neurons, "heads": heads}
    return [
        Variant(kind, source, k, e) for kind in KINDS for source in range(sources) for k in ks[kind] for e in (0, 2)
    ]


@torch.no_grad()
def full_forward(decoder, ids, findings, ranks, mode, scale, variant) -> np.ndarray:
    """The scores [SITES, E] by one forward of the whole prompt, its last position changed by hand."""
    totals = {site: np.zeros(len(findings.emotions)) for site in SITES}
    hooks = []
    for i, layer in enumerate(decoder.layers):
        count = layer.heads if variant.kind == "heads" else layer.neurons
        chosen = torch.from_numpy(np.flatnonzero(ranks[variant.source][i][:count] < variant.k))
        if variant.kind == "heads":
            chosen = (chosen[:, None] * layer.head_dim + torch.arange(layer.head_dim)).flatten()
        deltas = {"neurons": findings.mlp_delta, "heads": findings.attn_delta}[variant.kind]
        delta = torch.from_numpy(deltas[variant.emotion, i]).float()[chosen]

        def change(x, chosen=chosen, delta=delta):
            x = x.clone()
            x[0, -1, chosen] = 0 if mode == "ablation" else x[0, -1, chosen] + scale * delta
            return x

        def score(site, hidden, i=i):
            along = {"attn": findings.attn_directions, "mlp": findings.mlp_directions}[site]
            totals[site] += along[:, i] @ hidden[0, -1].double().numpy()

        site = layer.down_proj if variant.kind == "neurons" else layer.o_proj
        if site is not None:
            hooks.append(before(site, change))
        hooks += layer.seen_after_attention(partial(score, "attn"))
        hooks += layer.seen_after_mlp(partial(score, "mlp"))
    with hooked(hooks):
        decoder.forward(torch.tensor([ids]))
    return np.stack([totals[site] for site in SITES])


def assert_variants_score_as_full_forwards_do(decoder, mode, length, every=7):
    """every: one of how many variants is looked at."""
    findings = made_findings(decoder)
    units = Units(decoder, findings, (7,))
    variants = all_variants(4)[::every]
    scores, *_ = sweep(decoder, last(length), units, mode, variants, scale=0.7, batch_size=5)
    assert scores.shape == (len(variants), 2, 3)
    ranks = {
        kind: [*ranking(merit, units.count[kind]), random_ranking(7, number, units.count[kind], merit.shape[2])]
        for number, (kind, merit) in enumerate(zip(KINDS, (findings.neurons, findings.heads), strict=True))
    }
    for variant, found in zip(variants, scores, strict=True):
        expected = full_forward(decoder, some_ids(length), findings, ranks[variant.kind], mode, 0.7, variant)
        atol = 1e-4 * max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=atol, err_msg=str(variant))


def test_variants_score_as_a_full_forward_does(any_decoder):
    assert_variants_score_as_full_forwards_do(any_decoder, "ablation", 20, every=5)


# 90 tokens outgrow the attention window of the tiny Gemma 2.
@pytest.mark.parametrize(("mode", "length"), [*itertools.product(MODES, [1, 90]), ("enhancement", 20)])
def test_variants_score_as_a_full_forward_does_in_each_mode(different_decoder, mode, length):
    assert_variants_score_as_full_forwards_do(different_decoder, mode, length, every=1 if length == 20 else 7)


@pytest.mark.parametrize("mode", MODES)
def test_no_unit_changes_nothing(decoder, findings, mode):
    units = Units(decoder, findings, (0, 1))
    variants = [Variant(kind, source, 0, 1) for kind in KINDS for source in range(5)]
    scores, *_ = sweep(decoder, last(20), units, mode, variants)
    np.testing.assert_allclose(scores, scores[:1].repeat(10, 0), rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_with_all_units_no_ranking_matters(decoder, findings, kind, mode):
    units = Units(decoder, findings, (0, 1))
    scores, *_ = sweep(decoder, last(20), units, mode, [Variant(kind, source, 64, 1) for source in range(5)])
    np.testing.assert_allclose(scores, scores[:1].repeat(5, 0), atol=1e-4)
    baseline, *_ = sweep(decoder, last(20), units, mode, [Variant(kind, 0, 0, 1)])
    assert np.abs(scores[0] - baseline[0]).max() > 0.1


def test_without_heads_attention_adds_nothing(decoder, findings):
    units = Units(decoder, findings, ())
    ablated, *_ = sweep(decoder, last(20), units, "ablation", [Variant("heads", 0, 4, 0)])
    for layer in decoder.layers:
        layer.o_proj.weight.data.zero_()
    silent, *_ = sweep(decoder, last(20), units, "ablation", [Variant("heads", 0, 0, 0)])
    np.testing.assert_allclose(ablated, silent, rtol=1e-5, atol=1e-5)


def test_ranking_puts_the_greatest_first():
    assert ranking(np.array([[0.1, 3.0, -2.0, 0.5]])).tolist() == [[2, 0, 3, 1]]


def test_units_that_a_layer_lacks_come_last():
    merit = np.array([[0.1, -3.0, 9.0, 9.0], [0.1, 3.0, -2.0, 0.5]])
    assert ranking(merit, [2, 4]).tolist() == [[0, 1, 2, 3], [2, 0, 3, 1]]
    drawn = random_ranking(3, 0, [2, 4, 0], 4)
    assert [sorted(row.tolist()) for row in drawn] == [[0, 1, 2, 3]] * 3
    assert drawn[0, 2:].tolist() == [2, 3]


def test_random_rankings_depend_on_their_seed_only():
    first = random_ranking(3, 0, [40] * 5, 40)
    np.testing.assert_array_equal(first, random_ranking(3, 0, [40] * 5, 40))
    assert all(sorted(of_layer) == list(range(40)) for of_layer in first)
    others = [random_ranking(4, 0, [40] * 5, 40), random_ranking(3, 1, [40] * 5, 40), np.roll(first, 1, axis=0)]
    assert not any((other == first).all() for other in others)


def test_states_are_those_that_discovery_reads(decoder, findings, tokenizer, records, style, reply_style):
    units = Units(decoder, findings, ())
    user = expand(records)[0].user
    for chosen in (style, reply_style):
        for frame in chosen.frames("pride", 1):
            prompt = render(tokenizer, frame, user, chosen.reply_tokens)
            _, states, last = sweep(decoder, prompt, units, "ablation", [Variant("neurons", 0, 0, 0)])
            np.testing.assert_allclose(states, collect(decoder, [prompt])["mlp"][0], atol=1e-4)
            # Where the model would begin its own reply, a forced one left out.
            alone = render(tokenizer, frame.model_copy(update={"reply": None}), user)
            assert prompt.last == len(alone.ids) - 1
            np.testing.assert_allclose(last, collect(decoder, [alone])["mlp"][0], atol=1e-4)


def test_curves_are_means_against_no_units(decoder, tokenizer, findings, records, reply_style, validated):
    result = validated(styles=[reply_style])
    units = Units(decoder, findings, range(2))
    targeted, control = [], []
    for index, item in enumerate(expand(records)):
        prompts = [
            render(tokenizer, f, item.user, reply_style.reply_tokens) for f in reply_style.frames("pride", index)
        ]
        for prompt in prompts:
            variants = [Variant("heads", source, k, 1) for source in (1, 3, 4) for k in (0, 2)]
            scores = sweep(decoder, prompt, units, "ablation", variants)[0][:, 1, 1].reshape(3, 2)
            change = scores[:, 1] - scores[:, 0]
            targeted.append(change[0])
            control.append(change[1:])
    curve = one_curve(result, "ablation", "heads", "mlp", "pride")
    assert curve.k == [0, 1, 2, 4]
    assert curve.mean[0] == curve.random_high[0] == 0
    assert curve.mean[2] == pytest.approx(np.mean(targeted), rel=1e-4)
    assert curve.random_mean[2] == pytest.approx(np.mean(control), rel=1e-4)
    by_scenario = np.array(targeted).reshape(2, -1).mean(1)
    half = 12.7062 * by_scenario.std(ddof=1) / 2**0.5
    assert curve.high[2] - curve.mean[2] == pytest.approx(half, rel=1e-3)
    by_seed = np.array(control).mean(0)
    assert curve.random_mean[2] - curve.random_low[2] == pytest.approx(12.7062 * by_seed.std(ddof=1) / 2**0.5, rel=1e-3)


def one_curve(result: Validation, mode, kind, site, emotion):
    (found,) = [c for c in result.curves if (c.mode, c.kind, c.site, c.emotion) == (mode, kind, site, emotion)]
    return found


def test_validation_covers_every_sweep_and_layer(validated, decoder, tmp_path):
    result = validated()
    assert len(result.curves) == len(MODES) * len(KINDS) * len(SITES) * len(NAMES)
    assert {tuple(curve.k) for curve in result.curves} == {(0, 4, 16, 64), (0, 1, 2, 4)}
    assert (result.items, result.scenarios) == (6, 2)
    assert np.shape(result.f1) == (4, 3)
    assert np.shape(result.explained) == (4, 3)
    for of_layers in (result.components, result.pure):
        assert [panel.layer for panel in of_layers] == [0, 1, 2, 3]
        assert np.shape(of_layers[0].points) == (3, 6, 2)
    assert sum(result.signal("mlp")) == pytest.approx(
        np.trace(result.elicited["mlp"]) - np.sum(result.elicited["mlp"]) / 3, rel=1e-6
    )
    assert Validation.load(tmp_path / "work") == result
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["validation.json"]


def test_a_k_that_no_layer_has_is_left_out_and_told(validated, caplog, tmp_path):
    result = validated(plan=Plan(neurons=(4, 256, 65), heads=(4, 10), seeds=2))
    assert {tuple(curve.k) for curve in result.curves} == {(0, 4)}
    assert "no layer has more than 64 neurons: k = 65, 256 is left out" in caplog.text
    assert "no layer has more than 4 heads: k = 10 is left out" in caplog.text
    assert Validation.load(tmp_path / "work").left_out() == {"neurons": [65, 256], "heads": [10]}
    with pytest.raises(ResultsError, match="every sweep needs a k: of heads, at most 4, or all"):
        validated("other", plan=Plan(neurons=(4,), heads=(0, 10), seeds=2))
    with pytest.raises(ResultsError, match="every sweep needs a k: of heads, at most 4, or all"):
        validated(plan=Plan(neurons=(4,), heads=(10,), seeds=2), fresh=True)
    assert Validation.load(tmp_path / "work") == result


def test_all_units_enhance_as_much_as_all_random_ones(validated):
    result = validated()
    for emotion in NAMES:
        for kind in KINDS:
            curve = one_curve(result, "enhancement", kind, "mlp", emotion)
            assert curve.random_mean[-1] == pytest.approx(curve.mean[-1], rel=1e-4)
            assert abs(curve.mean[-1]) > 0.01


@contextmanager
def interrupted(monkeypatch, after: int):
    """Stops validation as Ctrl-C does, after so many items."""
    left = after
    measure = protocol.Protocol.measure

    def stop(self, item, index):
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        return measure(self, item, index)

    with monkeypatch.context() as patch:
        patch.setattr(protocol.Protocol, "measure", stop)
        with pytest.raises(KeyboardInterrupt):
            yield


def test_resumed_run_ends_as_an_uninterrupted_one(validated, tmp_path, monkeypatch):
    validated("whole")
    with interrupted(monkeypatch, 2):
        validated("parts")
    # Killed between the writes of an item: one file has a whole row more, or part of one.
    states = tmp_path / "parts" / validate.PART / "states.f32"
    states.write_bytes(states.read_bytes() + b"part of a row")
    with interrupted(monkeypatch, 1):
        validated("parts")
    scores = tmp_path / "parts" / validate.PART / "scores.f32"
    scores.write_bytes(scores.read_bytes() * 2)
    validated("parts")
    assert (tmp_path / "parts" / FILE).read_bytes() == (tmp_path / "whole" / FILE).read_bytes()


def test_finished_run_is_read_and_not_repeated(validated, monkeypatch):
    first = validated()
    with interrupted(monkeypatch, 0):
        assert validated() == first
        validated(fresh=True)


def test_fresh_run_that_was_interrupted_goes_on_without_asking_again(validated, records, monkeypatch):
    validated()
    other = records[::-1]
    with interrupted(monkeypatch, 1):
        validated(records=other, fresh=True)
    assert validated(records=other).items == 6


def test_other_inputs_are_not_mixed_with_earlier_results(validated, records, findings, style, monkeypatch):
    with interrupted(monkeypatch, 1):
        validated()
    other_data = [records[0], records[1].model_copy(update={"scenario": "a cat walks home ."})]
    other_plan = Plan(neurons=(4,), heads=(1,), seeds=2)
    with pytest.raises(StoredError, match=r"other settings: plan; give the same again .* --fresh"):
        validated(plan=other_plan)
    with pytest.raises(StoredError, match="other settings: data;"):
        validated(records=other_data)
    with pytest.raises(StoredError, match="other settings: styles, batch_size;"):
        validated(styles=[style.model_copy(update={"description": "other"})], batch_size=9)
    validated(plan=other_plan, fresh=True)
    with pytest.raises(StoredError, match=r"validation\.json: made with other settings: plan;"):
        validated()


def test_another_model_is_refused(validated, decoder):
    decoder.layers[2].o_proj.weight.data += 0.01
    validated("one")
    decoder.layers[2].o_proj.weight.data += 0.01
    with pytest.raises(StoredError, match="other settings: model;"):
        validated("one")


def test_what_cannot_be_validated_is_explained(validated, tiny, decoder, findings, records, style):
    with pytest.raises(ResultsError, match="1 scenarios: confidence intervals need at least 2"):
        validated(records=records[:1])
    with pytest.raises(ResultsError, match="1 seeds"):
        validated(plan=Plan(seeds=1))
    with pytest.raises(ResultsError, match="every sweep needs a k: of heads"):
        validated(plan=Plan(heads=()))
    with pytest.raises(ResultsError, match="every sweep needs a k, none below 0: of neurons, -1, 4"):
        validated(plan=Plan(neurons=(-1, 4)))
    with pytest.raises(ResultsError, match="findings are of calm, joy, but style told has calm, pride, boredom"):
        validated(findings=made_findings(decoder, ("calm", "joy")))
    narrow = Findings(
        **{
            name: getattr(findings, name)[:, :3] if name == "heads" else getattr(findings, name)
            for name in Findings.__slots__
        }
    )
    with pytest.raises(ResultsError, match=r"of another model: heads are \(3, 4\) per emotion, .* \(4, 4\)"):
        validated(findings=narrow)


def older(folder) -> None:
    """Turns a validation into one of the first format."""
    content = json.loads((folder / FILE).read_text())
    del content["pure"], content["trajectories"], content["inputs"]["format version"], content["inputs"]["circuit"]
    for layer in content["components"]:
        layer["points"] = [[[*point, 0.0] for point in of_emotion] for of_emotion in layer["points"]]
    (folder / FILE).write_text(json.dumps(content | {"format_version": 1}))


def test_validation_of_the_first_format_is_read_and_not_taken_for_one_of_today(validated, tmp_path):
    whole = validated()
    older(tmp_path / "work")
    read = Validation.load(tmp_path / "work")
    assert read.pure == read.trajectories == []
    assert read.curves == whole.curves
    with pytest.raises(StoredError, match="other settings: format version"):
        validated()
    assert validated(fresh=True) == whole


def test_damaged_validation_is_explained(tmp_path):
    with pytest.raises(ResultsError, match="missing; `emovllm validate` writes it"):
        Validation.load(tmp_path)
    for text in ("[]", "{}", '{"format_version": 1}', '{"format_version": 3}', "no json"):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(ResultsError, match=r"validation\.json"):
            Validation.load(tmp_path)


def test_prompts_that_are_the_same_in_all_emotions_are_refused(decoder, tokenizer, findings, records, style):
    same = style.model_copy(update={"emotions": dict.fromkeys(NAMES, style.emotions["calm"])})
    measured = protocol.Protocol(decoder, tokenizer, findings, [same], PLAN, 8)
    with pytest.raises(PromptError, match="same in the style told"):
        measured.measure(expand(records)[0], 0)


def test_wording_is_that_of_the_frames(decoder, tokenizer, findings, style, reply_style):
    many = style.model_copy(update={"emotions": {name: frames * 3 for name, frames in style.emotions.items()}})
    for styles, expected in (([style], 1), ([many], 3), ([many, reply_style], 3)):
        measured = protocol.Protocol(decoder, tokenizer, findings, styles, PLAN, 8)
        assert len({measured.wording(index) for index in range(12)}) == expected
        assert measured.wording(0) == measured.wording(6)


@pytest.fixture
def command(tmp_path, tiny, tokenizer, records, style, findings):
    """Runs `emovllm validate` on a tiny model saved in a folder; extra arguments come last."""
    tiny("llama").save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    (tmp_path / "sev.jsonl").write_text("".join(r.model_dump_json() + "\n" for r in records))
    (tmp_path / "told.json").write_text(style.model_dump_json())
    findings.save(tmp_path / "circuit.work")

    def run(*more: str) -> int:
        usual = [
            "--model",
            str(tmp_path / "tiny"),
            "--data",
            str(tmp_path / "sev.jsonl"),
            "--style",
            str(tmp_path / "told.json"),
            "--neurons",
            "4",
            "--heads",
            "1,2",
            "--seeds",
            "2",
        ]
        return main(["validate", str(tmp_path / "circuit"), *usual, *more])

    return run


def test_command_writes_beside_the_findings(command, tmp_path, capsys):
    assert command() == 0
    assert Validation.load(tmp_path / "circuit.work").emotions == list(NAMES)
    captured = capsys.readouterr()
    assert "2 scenarios; best probe F1" in captured.out
    assert "validation" in captured.err  # the progress bar
    assert str(tmp_path) not in (tmp_path / "circuit.work" / FILE).read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "0"], "--limit must be above 0, got 0"),
        (["--limit", "1"], "1 scenarios: confidence intervals need at least 2"),
        (["--work", "nowhere"], "missing; `emovllm discover` writes it"),
        (["--style", "paper"], "differ in their emotions"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl: No such file or directory"),
    ],
)
def test_mistakes_are_explained_and_write_nothing(command, tmp_path, capsys, arguments, message):
    assert command(*arguments) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "circuit.work").iterdir()] == ["findings.safetensors"]


def test_counts_that_are_no_numbers_are_explained(command, capsys):
    assert command("--heads", "1,two") == 2
    assert "expected numbers with commas between, or all, got '1,two'" in capsys.readouterr().err


def test_all_of_a_layers_units_are_a_k(command, tmp_path):
    assert command("--heads", "1,all", "--neurons", "all") == 0
    result = Validation.load(tmp_path / "circuit.work")
    assert {(curve.kind, tuple(curve.k)) for curve in result.curves} == {("neurons", (0, 64)), ("heads", (0, 1, 4))}
    assert result.left_out() == {}


def test_missing_findings_name_the_command(tmp_path):
    with pytest.raises(FindingsError, match="emovllm discover"):
        validate.run("default", tmp_path)
