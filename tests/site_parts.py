"""What a dashboard's parts hold, read back as a browser reads them; and features that are made of hostile text."""

import base64
import json
import re
import zlib
from dataclasses import replace
from typing import Any

from hubsae.features import Features, Label

HOSTILE = (
    "<script>window.taken=1</script>",
    "<img src=x onerror=window.taken=2>",
    "</script><script>window.taken=3</script>",
    '");window.taken=4;("',
    "javascript:window.taken=5",
    "\u202eright to left\u2066",
    "\x00\x07\x1b[31m",
    "line\nbreak\ttab\r",
    "\u2028\u2029",
    "\ud800 alone",
    "${window.taken=6}`",
    "&lt;b&gt;&amp;",
    "a\u0300\u0301\u0302\u0303",
    "עברית العربية",
    "👩‍👩‍👧‍👦",
    " ",
    "",
    "x" * 300,
)
HOSTILE_LABEL = '<b onclick="window.taken=7">bold</b> \u202e'


def data_of(content: bytes) -> Any:
    """The data that a part's script hands over; fails where it does anything else."""
    found = re.fullmatch(rb'hubsae\.put\("([a-z0-9/-]+)", "([A-Za-z0-9+/=]*)"\);\n', content)
    assert found, content[:200]
    return json.loads(zlib.decompress(base64.b64decode(found[2]), -zlib.MAX_WBITS))


def hostile(features: Features) -> Features:
    """The same features with hostile text for every token, label and name."""
    for name in ("vocabulary", "promoted_vocabulary"):
        if words := features.info.get(name):
            changed = {key: HOSTILE[i % len(HOSTILE)] for i, key in enumerate(words)}
            features = replace(features, info={**features.info, name: changed})
    features = replace(features, info={**features.info, "data": HOSTILE[0]})
    return features.labelled({11: Label(HOSTILE_LABEL, 0.9, 20, HOSTILE[1])})
