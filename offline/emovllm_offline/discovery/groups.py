"""What is compared between the emotions: groups of prompts, or of replies that the model reads."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from emovllm.errors import PromptError, StyleError
from emovllm_offline.data.prompts import Prompt, render, require_different
from emovllm_offline.data.sev import Item
from emovllm_offline.data.styles import Frame, Span, Style, common_emotions
from emovllm_offline.discovery.parameters import Extraction
from emovllm_offline.discovery.survival import Accepted
from emovllm_offline.reading.in_chat import Chats


@dataclass(frozen=True, slots=True)
class Group:
    """One scenario-event in one style: what is compared between the emotions.

    replies: what `emovllm elicit` got from each frame, where its run was given. read: whether the model reads the
    replies, of that run or the frames' own, as its user's messages, in place of the frames' prompts.
    """

    item: Item
    style: Style
    frames: tuple[tuple[int, Frame], ...]  # (emotion, one of its frames)
    replies: tuple[str, ...] = ()
    read: bool = False

    def prompts(self, tokenizer: Any) -> list[Prompt]:
        """Raises: PromptError, also where those of all emotions are the same."""
        span = self.style.reply_tokens
        if self.read:
            chats = Chats(tokenizer, None)
            prompts = [_message(chats, text, span) for text in self.texts()]
        else:
            prompts = [render(tokenizer, frame, self.item.user, span) for _, frame in self.frames]
        of_emotions: dict[int, tuple[Prompt, ...]] = {}
        for emotion, prompt in zip(self.emotions, prompts, strict=True):
            of_emotions[emotion] = (*of_emotions.get(emotion, ()), prompt)
        require_different(list(of_emotions.values()), self.style.name)
        return prompts

    def texts(self) -> tuple[str, ...]:
        """The replies that may be read. Raises: StyleError where the style has none, and none were elicited."""
        if self.replies:
            return self.replies
        texts = tuple(frame.reply for _, frame in self.frames if frame.reply is not None)
        if len(texts) < len(self.frames):
            raise StyleError(
                f"the style {self.style.name} has no replies that the model could read: take one that has (replies, "
                "fewshot, twenty), or those of an emovllm elicit run (--replies)"
            )
        return texts

    @property
    def emotions(self) -> list[int]:
        """The emotion of each prompt."""
        return [emotion for emotion, _ in self.frames]

    def describe(self) -> str:
        """Everything that its activations depend on but the model, the extraction and the replies of a run."""
        frames = [(emotion, frame.model_dump_json()) for emotion, frame in self.frames]
        return f"{self.item.id} {self.item.user} {self.style.reply_tokens} {frames}"


def groups(items: Sequence[Item], styles: Sequence[Style], accepted: Accepted | None = None) -> list[Group]:
    """The groups to measure, in order; with `accepted`, only complete ones, and of these the accepted frames."""
    emotions = common_emotions(styles)
    found = []
    for number, item in enumerate(items):
        for style in styles:
            if accepted is not None and style.name not in accepted.get(item.id, {}):
                continue
            frames: list[tuple[int, Frame]] = []
            replies: list[str] = []
            for e, name in enumerate(emotions):
                of_item = style.frames(name, number)
                if accepted is not None:
                    of_emotion = accepted[item.id][style.name].get(name, {})
                    kept = {style.emotions[name][i]: reply for i, reply in of_emotion.items()}
                    of_item = [frame for frame in of_item if frame in kept]
                    replies += [kept[frame] for frame in of_item]
                frames += [(e, frame) for frame in of_item]
            if {e for e, _ in frames} == set(range(len(emotions))):
                found.append(Group(item, style, tuple(frames), tuple(replies)))
    return found


def extracted(found: Sequence[Group], extract: Extraction) -> list[Group]:
    """Groups as an extraction takes them: to be read, each set of replies is a group once, whatever it replies to.

    Raises: StyleError where there are no replies to read.
    """
    if extract == "generation":
        return list(found)
    distinct: dict[Hashable, Group] = {}
    for group in found:
        what = (group.style.reply_tokens, tuple(group.emotions), group.texts())
        distinct.setdefault(what, replace(group, read=True))
    return list(distinct.values())


def _message(chats: Chats, text: str, span: Span) -> Prompt:
    """A reply as the user's message, up to the last of its own tokens that counts: those of `span`.

    Raises: PromptError where it has none there.
    """
    read = chats.read(text, "text", "mean")
    own = read.positions[span.first : span.last]
    if not own:
        raise PromptError(f"a reply of {len(read.positions)} tokens has none from {span.first} on: {text!r}")
    return Prompt(read.ids[: own[-1] + 1], range(own[0], own[-1] + 1))
