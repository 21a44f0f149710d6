"""Markdown as roff with man(7)'s macros: what docs/*.md uses of Markdown, and no more."""

from collections.abc import Iterator

from markdown_it import MarkdownIt
from markdown_it.token import Token

_FONTS = {"strong_open": r"\fB", "em_open": r"\fI", "strong_close": r"\fR", "em_close": r"\fR"}


def escape(text: str) -> str:
    """Text that roff shows as it is."""
    return _guard(_literal(text))


def _literal(text: str) -> str:
    return text.replace("\\", r"\e").replace("-", r"\-")


def _guard(text: str) -> str:
    """No line of it begins with a control character."""
    return "\n".join(r"\&" + line if line.startswith((".", "'")) else line for line in text.split("\n"))


def render(markdown: str) -> str:
    """A page or a part of one. `## X` becomes a section, `# X` is left out: the page has its own title."""
    tokens = MarkdownIt().enable("table").parse(markdown)
    return "".join(_blocks(iter(tokens)))


def _blocks(tokens: Iterator[Token]) -> Iterator[str]:
    lists: list[int] = []
    started = False  # the item's first paragraph belongs to its bullet or number
    for token in tokens:
        match token.type:
            case "heading_open":
                words = _inline(next(tokens))
                if token.tag != "h1":
                    yield f".SH {words.upper()}\n" if token.tag == "h2" else f".SS {words}\n"
            case "paragraph_open":
                yield "" if started else ".PP\n"
                yield _inline(next(tokens)) + "\n"
                started = False
            case "fence" | "code_block":
                yield f".PP\n.RS 4\n.EX\n{escape(token.content.rstrip())}\n.EE\n.RE\n"
            case "bullet_list_open" | "ordered_list_open":
                lists.append(0)
            case "bullet_list_close" | "ordered_list_close":
                lists.pop()
            case "list_item_open":
                lists[-1] += 1
                started = True
                mark = f"{token.info}." if token.info else r"\(bu"
                yield f".IP {mark} 4\n"
            case "table_open":
                yield from _table(tokens)


def _table(tokens: Iterator[Token]) -> Iterator[str]:
    """Each row as a tagged paragraph: the first cell is the tag, the others have their column's title before them."""
    titles: list[str] = []
    row: list[str] = []
    in_head = True
    for token in tokens:
        if token.type == "table_close":
            return
        if token.type == "thead_close":
            in_head, titles, row = False, row, []
        elif token.type == "inline":
            row.append(_inline(token))
        elif token.type == "tr_close" and not in_head:
            cells = [f"{title}: {cell}" for title, cell in zip(titles[1:-1], row[1:-1], strict=True) if cell]
            yield ".TP\n" + row[0] + "\n" + "\n.br\n".join([*cells, row[-1]]) + "\n"
            row = []


def _inline(token: Token) -> str:
    words = []
    for child in token.children or []:
        if child.type == "text":
            words.append(_literal(child.content))
        elif child.type == "code_inline":
            words.append(r"\fB" + _literal(child.content) + r"\fR")
        elif child.type == "softbreak":
            words.append("\n")
        else:
            words.append(_FONTS.get(child.type, ""))
    return _guard("".join(words))
