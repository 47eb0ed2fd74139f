"""Times E2B's own Python client: `e2b_client.py COUNT`. Prints JSON: microseconds of each part, in turn."""

import json
import sys
import time

from e2b import Sandbox

created, first_output, returned = [], [], []
# The first one has the client's own start in it: modules, connections.
for turn in range(int(sys.argv[1]) + 1):
    begun = time.monotonic()
    sandbox = Sandbox.create()
    made = time.monotonic()
    heard = []
    output = sandbox.commands.run("echo here", on_stdout=lambda _: heard.append(time.monotonic())).stdout
    ended = time.monotonic()
    assert output == "here\n", output
    sandbox.kill()
    if turn:
        created.append((made - begun) * 1e6)
        first_output.append((heard[0] - begun) * 1e6)
        returned.append((ended - begun) * 1e6)
    # Until the next one is prepared.
    time.sleep(0.03)
print(json.dumps({"create": created, "first_output": first_output, "returned": returned}))
