"""Runs one cell of Python after another, keeping what they define. One JSON object a line, both ways.

In: {"code": text, "env_vars": {name: value} or null}
Out, for each cell: stdout, stderr, result, error as they come; then number_of_executions and end_of_execution.
"""

import ast, base64, codecs, io, json, linecache, os, select, signal, subprocess, sys, threading, time, traceback, types

requests = os.fdopen(os.dup(0), "r", encoding="utf-8", newline="\n")
answers = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
lock = threading.Lock()
# Ends what a cell printed; nobody prints it by chance.
mark = b"\0" + base64.b64encode(os.urandom(18)) + b"\0"


def tell(kind, **fields):
    with lock:
        answers.write(json.dumps({"type": kind, **fields}) + "\n")
        answers.flush()


class Output(threading.Thread):
    """What comes out of a descriptor, also out of the programs that a cell starts."""

    def __init__(self, number, kind):
        super().__init__(daemon=True)
        self.kind, self.over = kind, threading.Event()
        self.reader, self.writer = os.pipe()
        os.dup2(self.writer, number)
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.start()

    def send(self, data, final=False):
        text = self.decoder.decode(data, final)
        if text:
            tell(self.kind, text=text, timestamp=time.time_ns())

    def run(self):
        held = b""
        while True:
            # What comes closely together is told together.
            if held and not select.select([self.reader], [], [], 0.1)[0]:
                self.send(held)
                held = b""
            held += os.read(self.reader, 65536)
            before, found, after = held.partition(mark)
            if found:
                # A program that a cell left behind may have printed after it.
                self.send(before, True)
                held = after
                self.over.set()
            elif len(held) > 65536:
                # A mark may have begun.
                keep = len(mark) - 1
                self.send(held[:-keep])
                held = held[-keep:]

    def drain(self):
        self.over.clear()
        os.write(self.writer, mark)
        self.over.wait()


outputs = [Output(1, "stdout"), Output(2, "stderr")]
sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8", "replace", write_through=True)
sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8", "replace", write_through=True)
main = types.ModuleType("__main__")
main.__dict__["__builtins__"] = __builtins__
sys.modules["__main__"] = main
running = False


def interrupted(_number, _frame):
    if running:
        raise KeyboardInterrupt


signal.signal(signal.SIGINT, interrupted)


def shell(line):
    """`!command` in a cell."""
    subprocess.run(["/bin/bash", "-c", line], check=False)


main.__dict__["__shell__"] = shell
KINDS = ["html", "markdown", "svg", "png", "jpeg", "pdf", "latex", "json", "javascript"]


def result_of(value):
    text = repr(value)
    if isinstance(value, str) and len(text) > 1:
        text = text[1:-1]
    found = {"text": text}
    for kind in KINDS:
        try:
            shown = getattr(value, f"_repr_{kind}_", lambda: None)()
        except Exception:
            continue
        if isinstance(shown, bytes):
            shown = base64.b64encode(shown).decode()
        if shown is not None and not isinstance(value, type):
            found[kind] = shown
    return found


def run(code, name):
    try:
        ast.parse(code, name)
        source = code
    except SyntaxError:
        # Only then: a text may have lines that begin so, too.
        lines = code.splitlines(keepends=True)
        source = "".join(f"__shell__({line[1:].strip()!r})\n" if line.startswith("!") else line for line in lines)
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    tree = ast.parse(source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), main.__dict__)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), name, "eval"), main.__dict__)
        if value is not None:
            main.__dict__["_"] = value
            return result_of(value)
    return None


count = 0
for line in requests:
    ask = json.loads(line)
    count += 1
    before = dict(os.environ)
    os.environ.update(ask.get("env_vars") or {})
    result = error = None
    try:
        running = True
        result = run(ask["code"], f"<cell {count}>")
    except BaseException as caught:
        running = False
        # Without the frames of this program.
        trace = caught.__traceback__
        while trace is not None and not trace.tb_frame.f_code.co_filename.startswith("<cell "):
            trace = trace.tb_next
        told = "".join(traceback.format_exception(type(caught), caught, trace))
        error = {"name": type(caught).__name__, "value": str(caught), "traceback": told}
    finally:
        running = False
    for name in [name for name in os.environ if name not in before]:
        del os.environ[name]
    os.environ.update(before)
    for output in outputs:
        output.drain()
    if result is not None:
        tell("result", is_main_result=True, **result)
    if error is not None:
        tell("error", **error)
    tell("number_of_executions", execution_count=count)
    tell("end_of_execution")
