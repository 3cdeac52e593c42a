"""XLA's text of a compiled program, read: what each operation is, the part of the model it belongs to, its source line.

    parse(text) -> Program
    about(program, "dot.3") -> About(what="dot f32[32,64] x f32[64,256]", part="layer0", source="functrain/layers/...")

The text is that of `compiled.as_text()`; its tables of source lines are as jax 0.10 to 0.12 write them.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

CONTAINERS = ("while", "conditional", "call")
"""Operations that run others, which are timed by themselves."""

_PACKAGE = Path(__file__).parent.parent
_PRODUCTS = ("dot", "convolution", "custom-call")
_NO_SCOPE = re.compile(
    r"(p?jit|cond|while|body|closed_call|checkpoint|remat\d?|rematted_computation|eval_jaxpr|shard_map"
    r"|custom_[jv][vj]p_call|branch_\d+_fun)?"
)


@dataclass(frozen=True)
class Frame:
    """A place in the source."""

    file: str
    line: int
    function: str

    @property
    def of_library(self) -> bool:
        """Whether it is in an installed package other than this one."""
        path = Path(self.file)
        return not path.is_relative_to(_PACKAGE) and bool({"site-packages", "dist-packages"} & set(path.parts))

    def __str__(self):
        path = Path(self.file)
        for folder in (_PACKAGE.parent, Path.cwd()):
            if path.is_relative_to(folder):
                path = path.relative_to(folder)
        return f"{path}:{self.line}"


@dataclass(frozen=True)
class Instruction:
    """A line of the text. shape: of its result, without layout; calls: the computation that it runs, or ""."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    calls: str = ""
    op_name: str = ""
    frame: int = 0


@dataclass(frozen=True)
class Program:
    """A module. bodies: the instructions of each computation, the root last; frames: innermost first."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    bodies: dict[str, list[Instruction]] = field(default_factory=dict)
    frames: dict[int, list[Frame]] = field(default_factory=dict)

    def inside(self, instruction: Instruction) -> Iterator[Instruction]:
        """What a fusion or a call runs, innermost bodies too."""
        for inner in self.bodies.get(instruction.calls, []):
            yield inner
            yield from self.inside(inner)


@dataclass(frozen=True)
class About:
    """What a person is told of an operation.

    what: the opcode and shapes; of a fusion with a product, the product's.
    part: the scope it was made in, the path of the model's part; "" outside of all.
    backward: whether it is of a gradient.
    source: file:line, the innermost that is no library's; where XLA made the operation and says not for what, "near"
      that of one that uses it, or that it uses; "" where these have none either.
    """

    what: str
    part: str = ""
    backward: bool = False
    source: str = ""


def parse(text: str) -> Program:
    """The program that a text describes.

    >>> program = parse('''HloModule m
    ... FileNames
    ... 1 "net.py"
    ... FunctionNames
    ... 1 "apply"
    ... FileLocations
    ... 1 {file_name_id=1 function_name_id=1 line=7 end_line=7}
    ... StackFrames
    ... 1 {file_location_id=1 parent_frame_id=1}
    ... ENTRY %main (x: f32[2,3]) -> f32[2,2] {
    ...   %x = f32[2,3]{1,0} parameter(0)
    ...   ROOT %d = f32[2,2]{1,0} dot(%x, %x), metadata={op_name="jit(f)/jvp(head)/dot_general" stack_frame_id=1}
    ... }''')
    >>> about(program, "d")
    About(what='dot f32[2,3] x f32[2,3]', part='head', backward=False, source='net.py:7')
    """
    lines = text.splitlines()
    program = Program(re.split(r"[\s,]+", lines[0])[1])
    tables: dict[str, dict[int, str]] = {}
    table, body = {}, None
    for line in lines[1:]:
        if re.fullmatch(r"[A-Z]\w+", line):
            table = tables.setdefault(line, {})
        elif entry := re.match(r"(\d+) (.+)", line):
            table[int(entry[1])] = entry[2]
        elif line.startswith(("%", "ENTRY")) and line.endswith("{"):
            body = program.bodies.setdefault(re.split(r"[\s(]+", line.removeprefix("ENTRY "))[0].strip("%"), [])
        elif body is not None and (found := _instruction(line)):
            body.append(found)
            program.instructions[found.name] = found
    program.frames.update(_frames(tables))
    return program


def _instruction(line: str) -> Instruction | None:
    start = re.match(r"\s+(?:ROOT )?%?(\S+) = ", line)
    if start is None:
        return None
    rest = line[start.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, rest = rest[: rest.index("(")], rest[rest.index("(") :]
    end = _closing(rest)
    operands = tuple(re.findall(r"%([^\s,()]+)", rest[:end]))
    calls = re.search(r"(?:calls|to_apply)=%?([^\s,}]+)", rest[end:])
    op_name, frame = re.search(r'op_name="([^"]*)"', rest[end:]), re.search(r"stack_frame_id=(\d+)", rest[end:])
    return Instruction(
        start[1],
        re.sub(r"\{[^}]*\}|/\*.*?\*/", "", shape),
        opcode,
        operands,
        calls[1] if calls else "",
        op_name[1] if op_name else "",
        int(frame[1]) if frame else 0,
    )


def _closing(text: str) -> int:
    """Where the parenthesis that opens a text closes."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return i
    return len(text) - 1


def _frames(tables: dict[str, dict[int, str]]) -> dict[int, list[Frame]]:
    def numbers(entry):
        return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", entry)}

    files, functions = ({i: t.strip('"') for i, t in tables.get(n, {}).items()} for n in ("FileNames", "FunctionNames"))
    places = {i: numbers(entry) for i, entry in tables.get("FileLocations", {}).items()}
    stack = {i: numbers(entry) for i, entry in tables.get("StackFrames", {}).items()}
    found: dict[int, list[Frame]] = {0: []}
    for i, entry in sorted(
        stack.items()
    ):  # a frame comes after the one that called it, whose number is written plus one
        place = places[entry["file_location_id"]]
        frame = Frame(files[place["file_name_id"]], place["line"], functions[place["function_name_id"]])
        found[i] = [frame, *found.get(entry["parent_frame_id"] - 1, [])]
    return found


def about(program: Program, name: str) -> About:
    """What an operation is, by the costliest operation inside of it where it is a fusion or a call."""
    whole = program.instructions.get(name)
    if whole is None:
        return About(name)
    inside = list(program.inside(whole))
    products = [i for i in (whole, *inside) if i.opcode in _PRODUCTS]
    chief = max(products, key=lambda i: _size(program, i), default=whole)
    own = next((i for i in (chief, whole, *reversed(inside)) if i.op_name), None)
    told = own or next(_neighbours(program, whole), whole)
    part, backward = part_of(told.op_name)
    frames = program.frames.get(told.frame, [])
    source = str(next((frame for frame in frames if not frame.of_library), frames[0] if frames else ""))
    return About(_what(program, whole, chief), part, backward, source if own or not source else f"near {source}")


def _neighbours(program: Program, instruction: Instruction) -> Iterator[Instruction]:
    """Those that use a result, then those whose results it uses, as far as they compute and have a name."""
    users = (i for i in program.instructions.values() if instruction.name in i.operands)
    used = (program.instructions[name] for name in instruction.operands if name in program.instructions)
    passing = ("parameter", "tuple", "get-tuple-element", "while")
    yield from (i for i in (*users, *used) if i.op_name and i.opcode not in passing)


def _what(program: Program, whole: Instruction, chief: Instruction) -> str:
    prefix = "" if chief is whole else f"{whole.opcode} of "
    if chief.opcode not in _PRODUCTS:
        return f"{prefix}{chief.opcode} {_short(chief.shape)}"
    operands = [program.instructions[o].shape for o in chief.operands[:2] if o in program.instructions]
    return f"{prefix}{chief.opcode} {' x '.join(map(_short, operands))}"


def _size(program: Program, product: Instruction) -> float:
    """Of a product, by which the costliest is found: numbers in its result times those of its operands."""
    shapes = [product.shape, *(program.instructions[o].shape for o in product.operands if o in program.instructions)]
    return math.prod(math.prod(_dimensions(_largest(shape)[0])) for shape in shapes)


def _dimensions(shape: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", shape.partition("[")[2])]


def _largest(shape: str) -> tuple[str, int]:
    """(the largest of the arrays in a shape, how many there are)."""
    arrays = re.findall(r"\w+\[[^\]]*\]", shape) or [shape]
    return max(arrays, key=lambda array: math.prod(_dimensions(array))), len(arrays)


def _short(shape: str) -> str:
    array, count = _largest(shape)
    return array if count == 1 else f"{array} and {count - 1} more"


def part_of(op_name: str) -> tuple[str, bool]:
    """(the scope in which an operation was made, whether it is of a gradient), from the name jax gave it.

    >>> part_of("jit(g)/while/body/transpose(jvp(block0))/attention/jit(_where)/select_n")
    ('block0/attention', True)
    >>> part_of("jit(g)/while/body/jit(_threefry_fold_in)/make_step.<locals>.step/add")
    ('', False)
    >>> part_of("jit(g)/jvp(block0)/linear/jvp(block0)/linear/dot_general")   # inside of a derivative of its own
    ('block0/linear', False)
    """
    inside = re.sub(r"\bp?jit\([^()]*\)", "", op_name.rpartition("/")[0])
    names = re.sub(r"\w+\(|\)", "/", inside).split("/")
    named = [name for name in names if not _NO_SCOPE.fullmatch(name) and not re.search(r"[.<>]|->|^_", name)]
    half = len(named) // 2
    if named[:half] == named[half:]:
        named = named[:half]
    return "/".join(named), "transpose(" in op_name
