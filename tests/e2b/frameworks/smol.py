"""A code agent of `smolagents` whose Python runs in a sandbox (executor `e2b`). The model is a script."""

from smolagents import ChatMessage, CodeAgent, Model

SCRIPT = [
    "Thought: I keep a number.\n<code>\nimport platform\nnumber = sum(range(101))\nprint('kept', number)\n</code>",
    "Thought: it is still there.\n<code>\nfinal_answer(number * 2)\n</code>",
]


class Scripted(Model):
    def __init__(self) -> None:
        super().__init__(model_id="scripted")
        self.rest = iter(SCRIPT)

    def generate(self, messages, **_more) -> ChatMessage:
        return ChatMessage(role="assistant", content=next(self.rest))


def main() -> None:
    with CodeAgent(tools=[], model=Scripted(), executor_type="e2b") as agent:
        answer = agent.run("the sum to 100, twice")
    assert answer == 10_100, answer
    print("smolagents: passed")


if __name__ == "__main__":
    main()
