"""A sandbox agent of `openai-agents` with its E2B back end. The model is a script."""

import asyncio
import json

from agents import ModelResponse, RunConfig, Runner, Usage
from agents.extensions.sandbox.e2b import E2BSandboxClient, E2BSandboxClientOptions
from agents.models.interface import Model
from agents.sandbox import SandboxAgent
from agents.sandbox.capabilities import Shell
from agents.run_config import SandboxRunConfig
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText


class Scripted(Model):
    """Asks for one command, and answers with what it printed."""

    async def get_response(self, system_instructions, input, *_rest, **_more) -> ModelResponse:
        outputs = [item["output"] for item in input if isinstance(item, dict) and item.get("type") == "function_call_output"]
        if outputs:
            text = ResponseOutputText(type="output_text", text=str(outputs[-1]), annotations=[])
            item = ResponseOutputMessage(id="m", type="message", role="assistant", status="completed", content=[text])
        else:
            arguments = json.dumps({"cmd": "echo $((6 * 7)) && whoami && python3 -c 'print(\"of python\")'"})
            item = ResponseFunctionToolCall(type="function_call", call_id="c", name="exec_command", arguments=arguments)
        return ModelResponse(output=[item], usage=Usage(), response_id=None)

    def stream_response(self, *_rest, **_more):
        raise NotImplementedError("nothing here streams")


async def main() -> None:
    agent = SandboxAgent(name="calculator", model=Scripted(), instructions="Calculate.", capabilities=[Shell()])
    options = E2BSandboxClientOptions(sandbox_type="e2b", template="base", timeout=120)
    run = RunConfig(sandbox=SandboxRunConfig(client=E2BSandboxClient(), options=options), tracing_disabled=True)
    result = await Runner.run(agent, "six times seven", run_config=run)
    for words in ["42", "user", "of python"]:
        assert words in result.final_output, result.final_output
    print("openai-agents: passed")


if __name__ == "__main__":
    asyncio.run(main())
