import json

import pytest

from emovllm.errors import StyleError
from emovllm_offline.data.styles import Style, common_emotions, load_style, packaged_styles


def test_packaged_styles_agree_on_their_emotions_but_for_the_one_of_twenty():
    styles = [load_style(name) for name in packaged_styles() if name != "twenty"]
    assert {"paper", "role", "replies"} <= {style.name for style in styles}
    assert len(common_emotions(styles)) == 6
    assert set(common_emotions(styles)) < set(load_style("twenty").emotions)


def test_each_of_twenty_emotions_has_prompts_and_replies_of_its_own():
    style = load_style("twenty")
    assert len(style.emotions) == 20
    replies = [frame.reply for frames in style.emotions.values() for frame in frames]
    assert len(set(replies)) == 20 * 8
    neutral = style.neutral
    for emotion, frames in style.emotions.items():
        prompts = [frame.system for frame in frames]
        assert sorted(map(prompts.count, prompts)) == [2] * 8
        assert all("at most two sentences" in prompt or "one or two sentences" in prompt for prompt in prompts)
        assert all(not frame.turns and frame.model_copy(update={"reply": None}) != neutral for frame in frames)
        assert any(emotion in prompt for prompt in prompts)
        for others in (other for other in style.emotions.items() if other[0] != emotion):
            assert not set(prompts) & {frame.system for frame in others[1]}
        openings = [frame.reply.split()[0].strip(",.!?").lower() for frame in frames]
        assert max(map(openings.count, openings)) <= 2, emotion


def test_paper_style_is_the_published_instruction():
    style = load_style("paper")
    for emotion in common_emotions([style]):
        (frame,) = style.emotions[emotion]
        assert frame.system == f"Always reply in {emotion}.\nKeep the reply to at most two sentences."
    assert style.neutral.system == "Keep the reply to at most two sentences."


def test_replies_do_not_share_their_first_word():
    # A first word that all replies of an emotion share would end up in its difference vector.
    for emotion, frames in load_style("replies").emotions.items():
        openings = [frame.reply.split()[0].strip(",.!?").lower() for frame in frames]
        assert len(openings) >= 10
        assert max(map(openings.count, openings)) <= 3, emotion


def test_variants_are_taken_in_turn(reply_style):
    replies = [frame.reply for item in (0, 1) for frame in reply_style.frames("calm", item)]
    assert replies == ["it is well .", "so quiet you are ."] * 2
    one_each = reply_style.model_copy(update={"per_item": 1})
    assert [one_each.frames("calm", item)[0].reply for item in (0, 1)] == ["it is well .", "so quiet you are ."]


def test_styles_with_other_emotions_do_not_combine(style):
    with pytest.raises(StyleError, match=r"paper and told differ .* anger, boredom"):
        common_emotions([load_style("paper"), style])
    with pytest.raises(StyleError, match="no elicitation style"):
        common_emotions([])


def test_unknown_style_lists_the_known_ones():
    with pytest.raises(StyleError, match="no style 'papre': expected one of fewshot, paper, "):
        load_style("papre")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"emotions": {"calm": [], "pride": [{}]}}, "emotions.calm"),
        ({"emotions": {"Calm!": [{}], "pride": [{}]}}, "Calm!"),
        ({"emotions": {"calm": [{}], "none": [{}]}}, "no emotion can be called 'none', which asks for the plain model"),
        ({"emotions": {"calm": [{}], "neutral": [{}]}}, "no emotion can be called 'neutral'"),
        ({"reply_tokens": {"first": 4, "last": 2}}, "first 4 is not before last 2"),
        ({"neutral": {"reply": "hm"}}, "neutral frame has a reply"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_faulty_style_file_is_explained(tmp_path, style, change, message):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(style.model_dump(mode="json") | change))
    with pytest.raises(StyleError, match=r"mine\.json") as caught:
        load_style(path)
    assert message in str(caught.value)


def test_style_needs_two_emotions(style):
    with pytest.raises(ValueError, match="at least 2"):
        Style.model_validate(style.model_dump() | {"emotions": {"calm": [{}]}})


def test_style_that_an_editor_saved_again_is_the_same(tmp_path, style):
    path = tmp_path / "mine.json"
    path.write_bytes(b"\xef\xbb\xbf" + style.model_dump_json(indent=1).replace("\n", "\r\n").encode())
    assert load_style(path).digest() == style.digest()
