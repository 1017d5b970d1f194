"""The requests of an evaluation: first every reply, then how likely each is to the unsteered model."""

from __future__ import annotations

from collections.abc import Sequence

from emovllm.errors import EvaluationError
from emovllm.progress import Bar
from emovllm_offline.endpoint.loops import wait_for
from emovllm_offline.evaluation.client import Connection, EmotionClient, connect, saturate
from emovllm_offline.evaluation.folder import INSTRUCTION, NEUTRAL, Folder, Likelihood, Reply, Session
from emovllm_offline.evaluation.likelihood import Question, answer
from emovllm_offline.evaluation.plan import INSTRUCTED, Task
from emovllm_offline.evaluation.readout import reading_served, refuse_unread
from emovllm_offline.model.likelihood import Likelihoods


def missing_replies(planned: Sequence[Task], folder: Folder) -> list[Task]:
    return [task for task in planned if task.key not in folder.replies]


def questions(planned: Sequence[Task], folder: Folder) -> list[Question]:
    """The likelihoods that can be asked for and are not there: given the message's neutral prompt, and given the
    prompt that asks for the emotion where a method of this evaluation has it. Empty replies have none."""
    prompts = {}
    for task in planned:
        kind = (INSTRUCTION, task.key.emotion) if task.key.method in INSTRUCTED else (NEUTRAL, "")
        # A reply that was kept back has no prompt; others of the same prompt may have it.
        if folder.replies[task.key].prompt:
            prompts[(task.key.message, *kind)] = folder.replies[task.key].prompt
    found = []
    for task in planned:
        reply = folder.replies[task.key]
        for given, emotion in ((NEUTRAL, ""), (INSTRUCTION, task.key.emotion)):
            prompt = prompts.get((task.key.message, given, emotion))
            if prompt and reply.tokens and (task.key, given) not in folder.likelihoods:
                found.append(Question(task.key, given, prompt, reply.tokens))
    return found


def run(planned: Sequence[Task], folder: Folder, connection: Connection, max_tokens: int, circuit: str) -> None:
    """Asks a server for the replies that the folder lacks. Raises: EndpointError, EvaluationError."""

    async def ask() -> None:
        async with connect(connection) as client:
            served = await client.describe()
            if served.circuit != circuit:
                raise EvaluationError("the server's circuit is not the one that this evaluation began with")
            if connection.readout:
                refuse_unread(planned, folder, reading_served(served))
            await _replies(missing_replies(planned, folder), folder, client, connection, max_tokens)

    wait_for(ask())


def ask_server(planned: Sequence[Task], folder: Folder, connection: Connection) -> None:
    """Asks a server for the likelihoods that the folder lacks. Raises: EndpointError."""

    async def ask() -> None:
        async with connect(connection) as client:
            await client.describe()
            await _likelihoods(questions(planned, folder), folder, client, connection)

    wait_for(ask())


def ask_model(planned: Sequence[Task], folder: Folder, model: str) -> None:
    """Computes the likelihoods that the folder lacks, by a local model's folder or id."""
    todo = questions(planned, folder)
    if not todo:
        return
    scorer = Likelihoods.load(model)
    with Bar("perplexity", len(todo), unit="requests") as bar:

        def done(likelihood: Likelihood) -> None:
            folder.add_likelihood(likelihood)
            bar.advance()

        folder.add_session(answer(scorer, todo, done))


async def _replies(
    todo: Sequence[Task], folder: Folder, client: EmotionClient, connection: Connection, max_tokens: int
) -> None:
    if not todo:
        return
    # Untimed: a first request may compile or allocate.
    folder.add_reply(await client.reply(todo[0], max_tokens))
    with Bar("replies", len(todo), done=1, unit="requests") as bar:

        def done(reply: Reply) -> int:
            folder.add_reply(reply)
            bar.advance()
            return len(reply.tokens)

        async def ask(task: Task) -> Reply:
            return await client.reply(task, max_tokens)

        def finish(session: Session) -> None:
            folder.add_session(session.model_copy(update={"notes": client.notes}))

        if todo[1:]:
            await saturate("replies", ask, todo[1:], connection.concurrency, done, finish)


async def _likelihoods(todo: Sequence[Question], folder: Folder, client: EmotionClient, connection: Connection) -> None:
    if not todo:
        return
    with Bar("perplexity", len(todo), unit="requests") as bar:

        async def ask(question: Question) -> tuple[Question, float]:
            return question, await client.likelihood(question.prompt, question.tokens)

        def done(answer: tuple[Question, float]) -> int:
            question, nll = answer
            folder.add_likelihood(Likelihood(key=question.key, given=question.given, nll=nll))
            bar.advance()
            return len(question.prompt) + len(question.tokens)

        await saturate("perplexity", ask, todo, connection.concurrency, done, folder.add_session)


def throughput(sessions: Sequence[Session], phase: str) -> dict[str, float] | None:
    """Over all sessions of a phase; None where there was none."""
    chosen = [session for session in sessions if session.phase == phase]
    seconds = sum(session.seconds for session in chosen)
    if not seconds:
        return None
    return {
        "requests": sum(session.requests for session in chosen),
        "seconds": seconds,
        "requests_per_s": sum(session.requests for session in chosen) / seconds,
        "tokens_per_s": sum(session.tokens for session in chosen) / seconds,
        "utilisation": sum(session.busy * session.seconds for session in chosen) / seconds,
    }
