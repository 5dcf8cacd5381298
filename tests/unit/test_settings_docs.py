"""`docs/settings.md` says what the settings are."""

from __future__ import annotations

import re

from broker import settings_docs


def test_the_page_is_what_the_settings_say() -> None:
    page = settings_docs.FILE.read_text(encoding="utf-8")
    assert page == settings_docs.document(), "run `python -m broker.settings_docs`"


def test_every_setting_stands_on_the_page_with_a_description() -> None:
    page = settings_docs.document()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    names = {row.split("`")[1]: row for row in rows}
    for name in settings_docs.setting_names():
        if name not in names:  # a section
            assert re.search(rf"`\[([a-zA-Z_.]+\.)?{name}[.\]]", page), name
        else:
            assert names[name].rstrip(" |").split("|")[-1].strip(), name
