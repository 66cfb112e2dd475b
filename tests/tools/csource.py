"""As much understanding of our own C as the checks need: comments and strings
out, functions with their lines, the room that each stands in, who names whom.
It relies on the project's style (a definition begins in the first column)."""

import re

KEYWORDS = set("""if for while switch return sizeof do else case goto break continue default
    static const void struct enum union typedef extern inline signed unsigned char short int long
    float double defined""".split())

TOKEN = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.S)
ROOM = re.compile(r"^ \* >>([a-z0-9-]+)", re.M)


def blank(text, keep_comments=False):
    """The text with comments and the insides of strings as spaces, lines kept."""
    def spaces(m):
        s = m.group(0)
        if s[0] == "/":
            return s if keep_comments else re.sub(r"[^\n]", " ", s)
        return s[0] + " " * (len(s) - 2) + s[-1]
    return TOKEN.sub(spaces, text)


def comments(text):
    return "\n".join(m.group(0) for m in TOKEN.finditer(text) if m.group(0)[0] == "/")


def without_directives(code):
    """Preprocessor lines (with their continuations) as empty lines."""
    out, inside = [], False
    for line in code.split("\n"):
        here = inside or line.lstrip().startswith("#")
        inside = here and line.endswith("\\")
        out.append("" if here else line)
    return "\n".join(out)


class Function:
    def __init__(self, name, first, last, body, static):
        self.name, self.first, self.last, self.body, self.static = name, first, last, body, static
        self.room = None

    def lines(self):
        return self.last - self.first + 1

    def names(self):
        """Every identifier of the body that is not a member."""
        return set(re.findall(r"(?<![\w.>])(?<!->)([A-Za-z_]\w*)", self.body))

    def calls(self):
        """Every name that a parenthesis follows and that is not a member."""
        return set(re.findall(r"(?<![\w.])(?<!->)([A-Za-z_]\w*)\s*\(", self.body)) - KEYWORDS


class Source:
    """One file: functions, declarations at the top level, rooms by line."""

    def __init__(self, path, text):
        self.path, self.text = path, text
        self.lines = text.split("\n")
        self.code = blank(text)
        self.plain = without_directives(self.code)
        self.functions, self.declarations = [], []
        self._top_level()
        self.rooms = self._rooms()
        for f in self.functions:
            f.room = self.room_at(f.first)

    def _top_level(self):
        """Walks the file once at brace depth 0."""
        code = re.sub(r'extern\s+"[^"]*"\s*\{', lambda m: " " * len(m.group(0)), self.plain)
        start, depth, at = 0, 0, 0
        while at < len(code):
            c = code[at]
            if c == "{":
                if depth == 0:
                    opened = at
                depth += 1
            elif c == "}" and depth > 0:
                depth -= 1
                if depth == 0 and self._function(code, start, opened, at):
                    start = at + 1
            elif c == "}" and depth == 0:
                start = at + 1              # the end of extern "C"
            elif c == ";" and depth == 0:
                self._declaration(code, start, at)
                start = at + 1
            at += 1

    def _line(self, at):
        return self.plain.count("\n", 0, at) + 1

    def _function(self, code, start, opened, end):
        head = code[start:opened].strip()
        head = re.sub(r"__attribute__\s*\(\(.*?\)\)", "", head).strip()
        m = re.search(r"([A-Za-z_]\w*)\s*\(", head)
        if not head.endswith(")") or not m or "=" in head or head.startswith(("typedef", "struct",
                                                                            "enum", "union")):
            # A struct that a function returns: its name comes before the parenthesis all the same.
            if not (m and head.endswith(")") and "=" not in head and "typedef" not in head):
                return False
        first = self._line(start + len(code[start:opened]) - len(code[start:opened].lstrip()))
        self.functions.append(Function(m.group(1), first, self._line(end), code[opened:end + 1],
                                       "static" in head.split("(")[0].split()))
        return True

    def _declaration(self, code, start, end):
        text = code[start:end].strip()
        if text:
            lead = len(code[start:end]) - len(code[start:end].lstrip())
            self.declarations.append((self._line(start + lead), text))

    def _rooms(self):
        out = []
        for m in ROOM.finditer(self.text):
            line = self.text.count("\n", 0, m.start()) + 1
            if line >= 2 and self.lines[line - 2].startswith("/* ===="):
                out.append((line - 1, m.group(1)))
        return out

    def room_at(self, line):
        name = None
        for first, room in self.rooms:
            if first <= line:
                name = room
        return name

    def implementation_line(self):
        for number, line in enumerate(self.lines, 1):
            if re.match(r"#\s*ifdef\s+TAILNET_IMPLEMENTATION\b", line):
                return number
        return len(self.lines) + 1
