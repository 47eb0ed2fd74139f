"""A Deep Agent of LangChain whose files and commands are in a sandbox (`langchain-e2b`). The model is a script."""

import e2b
from deepagents import create_deep_agent
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_e2b import E2BSandbox


class Scripted(GenericFakeChatModel):
    def bind_tools(self, *_tools: object, **_more: object) -> "Scripted":
        return self


def call(name: str, **args: object) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": f"call-{name}"}])


def main() -> None:
    sandbox = e2b.Sandbox.create(timeout=120)
    try:
        backend = E2BSandbox(sandbox=sandbox)
        script = [
            call("write_file", file_path="/home/user/sum.py", content="print(sum(range(101)))\n"),
            call("execute", command="python3 sum.py && uname -n && whoami"),
            call("read_file", file_path="/home/user/sum.py"),
            AIMessage("done"),
        ]
        agent = create_deep_agent(model=Scripted(messages=iter(script)), backend=backend)
        said = agent.invoke({"messages": [("user", "add the numbers to 100")]})["messages"]
        results = {message.name: message.content for message in said if message.type == "tool"}
        assert "5050" in results["execute"] and "user" in results["execute"], results
        assert "print(sum(range(101)))" in results["read_file"], results
        assert sandbox.files.read("/home/user/sum.py") == "print(sum(range(101)))\n"
        assert said[-1].content == "done"
    finally:
        sandbox.kill()
    print("langchain-e2b: passed")


if __name__ == "__main__":
    main()
