"""The Hugging Face judge, on tiny random classifiers with a few weights set by hand."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForSequenceClassification, RobertaModel

from emovllm.errors import JudgeError
from emovllm_offline.judges.classifier import DEFAULT_MODEL, HFJudge
from emovllm_offline.judges.judge import CachedJudge, Verdict, make_judge

EKMAN = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
EMOTIONS = ("anger", "sadness", "happiness", "fear", "surprise", "disgust")
WORDS = ("<s>", "<pad>", "</s>", "<unk>", "hooray", "grr", "table", "and")


def classifier(folder, labels=EKMAN, seed=0, bias=None):
    torch.manual_seed(seed)
    config = RobertaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=40,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        initializer_range=1.0,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    model = RobertaForSequenceClassification(config).eval()
    if bias is not None:
        with torch.no_grad():
            model.classifier.out_proj.weight.zero_()
            model.classifier.out_proj.bias.copy_(torch.tensor(bias))
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return model, str(folder)


def _tokenizer():
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=32,
    )


def test_labels_are_those_of_the_classifier_under_our_names(tmp_path):
    model, folder = classifier(tmp_path / "m")
    texts = ["hooray hooray", "grr", "table and table and grr", "hooray and " * 40]
    verdicts = HFJudge(EMOTIONS, folder, batch_size=3).judge(texts, ["happiness"] * 4)
    for text, verdict in zip(texts, verdicts, strict=True):
        ids = _tokenizer()(text, return_tensors="pt", truncation=True)["input_ids"]
        with torch.inference_mode():
            row = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].softmax(-1)
        label = {"joy": "happiness"}.get(EKMAN[row.argmax()], EKMAN[row.argmax()])
        assert verdict == Verdict(label == "happiness", label, f"{label} {row.max():.2f}")
    assert len({verdict.label for verdict in verdicts}) > 1


def test_target_is_not_shown(tmp_path):
    _, folder = classifier(tmp_path / "m", bias=[0, 0, 0, 3.0, 0, 0, 0])
    verdicts = HFJudge(EMOTIONS, folder).judge(["grr", "grr", " "], ["happiness", "anger", "anger"])
    assert [verdict.match for verdict in verdicts] == [True, False, False]
    assert [verdict.label for verdict in verdicts] == ["happiness", "happiness", None]


def test_labels_nobody_asked_for_are_left_out_and_synonyms_count_together(tmp_path):
    labels = ("love", "joy", "HAPPY", "neutral")
    _, folder = classifier(tmp_path / "m", labels, bias=[9.0, 1.0, 1.0, 1.2])
    (verdict,) = HFJudge(["happiness"], folder).judge(["table"], ["happiness"])
    assert verdict.label == "happiness"
    share = 2 * torch.e / (2 * torch.e + torch.e**1.2)
    assert verdict.reason == f"happiness {share:.2f}"


def test_label_names_can_be_told(tmp_path):
    _, folder = classifier(tmp_path / "m", ("LABEL_0", "LABEL_1"), bias=[0.0, 2.0])
    with pytest.raises(JudgeError, match="no label for anger, neutral, only LABEL_0, LABEL_1"):
        HFJudge(["anger"], folder)
    judge = make_judge("hf", ["anger"], model=folder, labels={"label_0": "neutral", "label_1": "anger"})
    assert judge.judge(["grr"], ["anger"])[0].match


def test_classifier_without_neutral_is_refused(tmp_path):
    _, folder = classifier(tmp_path / "m", ("anger", "joy"))
    with pytest.raises(JudgeError, match="no label for neutral"):
        HFJudge(["anger", "happiness"], folder)


def test_cache_tells_classifiers_apart_by_their_weights(tmp_path):
    config = []
    for name, seed in (("one", 0), ("two", 1), ("three", 0)):
        _, folder = classifier(tmp_path / name / "m", seed=seed)
        config.append(dict(HFJudge(EMOTIONS, folder).config))
    assert config[0] == config[2] != config[1]
    assert config[0]["model"] == "m"
    judge = make_judge("hf", EMOTIONS, model=str(tmp_path / "one" / "m"), cache=tmp_path / "judged.jsonl")
    assert isinstance(judge, CachedJudge)
    assert judge.judge(["grr"], ["anger"]) == judge.judge(["grr"], ["anger"])
    assert len((tmp_path / "judged.jsonl").read_text().splitlines()) == 1


def test_model_that_is_no_classifier_is_refused(tmp_path):
    model, folder = classifier(tmp_path / "m")
    RobertaModel(model.config).save_pretrained(folder)
    with pytest.raises(JudgeError, match="no text-classification model: it lacks classifier"):
        HFJudge(EMOTIONS, folder)


def test_model_that_cannot_be_read_is_told_in_a_line(tmp_path):
    with pytest.raises(JudgeError, match="cannot be read") as error:
        HFJudge(EMOTIONS, str(tmp_path / "nowhere"))
    assert "\n" not in str(error.value)


def test_default_is_asked_of_the_hub():
    """Tests reach for no hub, so that the model itself is not run here: only what becomes of its absence is."""
    with pytest.raises(JudgeError, match=DEFAULT_MODEL):
        make_judge("hf", EMOTIONS)
