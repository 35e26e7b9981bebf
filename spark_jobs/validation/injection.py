"""Detect hostile text from outside: instructions to a language model, prompt markup, code, links, advertisements.

Hostile text is used neither in a prompt nor in a description built from facts. Each text is checked in several
readings: unchanged, with look-alike letters of other scripts replaced, with spaced letters joined, with digits read as
letters (`1gn0re`), and with base64 decoded. Instructions are recognised by their form (`injection_patterns.py`), not
by what they ask for.

Not detected: instructions in other languages, in unusual words (`kindly leave aside what came before`), in ASCII art
or spread over the titles of several items; slander that names no crime; a bare domain such as `brand.com`, which may be
a brand. The fence of the prompt and the validator protect against these: the validator refuses what no fact supports.
"""

import base64
import binascii
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from spark_jobs.validation.clean_text import fold, visible_text
from spark_jobs.validation.injection_patterns import any_of, hides_instruction, reads_as_instruction

# Cyrillic, Greek and small capital letters that look like Latin ones.
_LOOK_ALIKES = str.maketrans(
    "аеорсухіѕјһԁԛԝвнмткгпԍɡıαβγεηικνορτυχωАВЕНІЈКМОРСТУХЅΑΒΕΖΗΙΚΜΝΟΡΤΥΧᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ",
    "aeopcyxisjhdqwbhmtkrnggiabyenikvoptuxwABEHIJKMOPCTYXSABEZHIKMNOPTYXabcdefghijklmnoprstuvwyz",
)
_LEET = str.maketrans("013457@$!|", "oieastasil")
_SPACED = re.compile(r"(?<![^\W_])(?:[^\W_][\s._*-]{1,2}){3,}[^\W_](?![^\W_])")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{16,}={0,2}")

_ROLE = "(?:system|user|assistant|human)"
_TOKENS = any_of(
    r"<\s*/?\s*facts|<\|.{0,40}?\|>|\|(?:im_start|im_end|endoftext|eot_id|start_header_id|end_header_id)\|",
    rf"\|{_ROLE}\||\[/?(?:inst|sys|system)\]|<<\s*/?sys\s*>>",
    rf"</?(?:bos|eos|start_of_turn|end_of_turn|prompt|instructions?|tool_call|think|{_ROLE})>",
    rf"(?:^|\s)#{{2,}}\s*(?:instructions?|response|input|{_ROLE})\b|={{3,}}\s*{_ROLE}\b|(?:^|[.!?;\n]\s*){_ROLE}\s*:\s",
    r"\bbegin (?:system|instructions?|prompt)\b|\bend of (?:prompt|facts|instructions|data|context)\b",
    flags=re.IGNORECASE,
)
_CODE = any_of(
    r"\{\{|\}\}|\{%|%\}|\$\{|\$\(|%\(\w+\)[sdr]|\{\w*(?:[.\[!:]\w+[\])]*)*\}|__\w+__",  # templates
    r"\b(?:drop|truncate|alter) (?:table|database)\b|\bdelete from \w|\binsert into \w+ ?(?:values|\()",  # SQL
    r"\bunion\s+(?:all\s+)?select\b|['\"]\s*or\s+['\"]?1['\"]?\s*=\s*['\"]?1|['\"]\s*--\s*$",
    r"<\?php|\bjavascript:|\bon(?:error|load|click)\s*=|\]\((?:\w+:|/|\.)",  # web pages
    r"\.\./\.\./|\bsudo \w+|\brm -rf\b",
    flags=re.IGNORECASE,
)
_BRAND_DOMAINS = "com|org|net|co|io|de|fr|es|it|uk|eu|us|in|br|jp"  # with a plain name these may be brands: acne.org
_OTHER_DOMAINS = "ru|cn|info|biz|xyz|top|site|online|click|link|shop|club|example|test|tk|ly|me|gg|app"
_CALLS = (
    r"visit|at|go to|goto|see|check|on|via|order|shop|buy|click|join|besuche\w*|auf|bei|visite[rz]?|visita|chez|sur"
)
_LINK = any_of(
    r"\bh(?:tt|xx)ps?\b\W|\bftp:|\bwww\d?\s*\.|[\w.+-]+@[\w-]+\.\w{2,}",
    r"\b[\w-]+\s*(?:\[\.\]|\(\.\)|[\[(]dot[\])]|\bdot\b)\s*(?:com|net|org|ru|cn|io|info)\b",
    rf"\b(?:[a-z0-9-]+\.)+(?:{_BRAND_DOMAINS}|{_OTHER_DOMAINS})/\w|\b(?:[a-z0-9-]+\.)+(?-i:{_OTHER_DOMAINS})\b",
    rf"\b(?:{_CALLS})[\s:]+(?:[a-z0-9-]+\.)+(?:{_BRAND_DOMAINS})\b",
    rf"\b(?:[a-z0-9]+-[a-z0-9-]+|[a-z]+\d[a-z0-9]*|[a-z0-9-]+\.[a-z][a-z0-9-]*)\.(?:{_BRAND_DOMAINS})\b",
    flags=re.IGNORECASE,
)
_PHONE = any_of(
    r"(?:\+\d{1,3}[\s().-]*|\b00\d{2}[\s().-]*|\b1[\s.-])?\(?\b\d{3}\)?[\s.-]\d{3}[\s.-]\d{4}\b|\+\d[\d\s().-]{7,}\d",
    r"\b(?:call|text|whatsapp|telegram|sms|phone|dial|tel|ruf\w*|appele\w*|llam\w*)\b.{0,20}\d[\d\s().-]{5,}\d",
    r"\btext \w+ to \d{4,}\b",
    flags=re.IGNORECASE,
)
_ADVERTISEMENT = any_of(
    r"\b(?:click|tap) (?:here|this|below|the link)|\b(?:buy|order|act|shop|subscribe|register|sign up|download) now\b",
    r"\b(?:promo|discount|coupon|voucher) code\b|\buse code\b|\bfollow (?:me|us) on\b|\blimited[- ]time offer\b",
    r"\bfree (?:iphone|gift card|money|crypto|bitcoin)|\bearn (?:money|\$|€|cash|up to)",
    r"\b(?:cheap|buy) (?:viagra|cialis|pills|followers|xanax|replica)|\bmake money\b.{0,20}\b(?:fast|online|home)",
    r"\b(?:casino|betting|forex|crypto)\b.{0,20}\b(?:bonus|win|signals?|profit)",
    r"\b(?:dm|message|contact|text|email) (?:me|us) (?:for|on|at|to)\b",
    r"\bjetzt kaufen\b|\bachetez maintenant\b|\bcompra ahora\b|\bcompre agora\b",
    r"купи(?:те)? сейчас|立即购买|点击这里|今すぐ購入",
    flags=re.IGNORECASE,
)
# Matches lower case or all capitals only: `My Neighbour Is a Murderer` is a title.
_CRIMES = "fraud|fraudster|scam|scammer|liar|thief|crook|criminal|murderer|rapist|pa?edophile|nazi|terrorist|racist"
_SLANDER = any_of(
    rf"\b(?:is|are|was) (?:an? |all )?(?:known |convicted )?(?:{_CRIMES})s?\b",
    r"\bboycott\b|\b(?:never|do not|don'?t) buy\b",
    r"\b(?:poison|kill|cheat|scam|defraud|rob|steal)s? (?:its|their|his|her|the|your) "
    r"(?:customer|user|buyer|child|employee|data|money)",
)


def holds_chat_token(raw: str) -> bool:
    """Whether a text, before its tags are removed, contains prompt markup: a role, a turn or a fence."""
    return bool(_TOKENS.search(unicodedata.normalize("NFKC", visible_text(raw))))


@lru_cache(maxsize=65536)
def hostile_reason(text: str) -> str | None:
    """Why a clean text must not be used as a fact; None if it may be used."""
    if hides_instruction("".join(filter(str.isalpha, fold(text).translate(_LOOK_ALIKES)))):
        return "instruction"
    return next((reason for reading in _readings(text) if (reason := _reason(reading))), None)


def _reason(reading: str) -> str | None:
    for reason, pattern in (
        ("chat_token", _TOKENS),
        ("code", _CODE),
        ("link", _LINK),
        ("phone", _PHONE),
        ("advertisement", _ADVERTISEMENT),
    ):
        if pattern.search(reading):
            return reason
    if _SLANDER.search(reading.lower() if reading.isupper() else reading):
        return "slander"
    return "instruction" if reads_as_instruction(reading) else None


def read_as_instruction_together(texts: Sequence[str]) -> bool:
    """Whether texts read as an instruction when joined: all in a row, or the first followed by any other."""
    rows = [" ".join(texts), *(f"{texts[0]} {text}" for text in texts[2:])] if len(texts) > 1 else []
    return any(reads_as_instruction(reading) for row in rows for reading in _readings(row))


def _readings(text: str) -> list[str]:
    """The text itself and its possible decodings, without duplicates."""
    plain = unicodedata.normalize("NFKC", text)
    latin = plain.translate(_LOOK_ALIKES)
    joined = _SPACED.sub(lambda match: re.sub(r"[\s._*-]", "", match[0]), latin)
    leet = re.sub(r"\S*[^\W\d_]\S*", lambda match: match[0].translate(_LEET), joined)
    return list(dict.fromkeys([plain, latin, joined, leet, *_decoded(plain)]))


def _decoded(text: str) -> list[str]:
    """The readable contents of base64 strings in the text."""
    found = []
    for match in _BASE64.finditer(text):
        encoded = match[0].rstrip("=")
        try:
            content = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            continue
        if content.isprintable():
            found.append(content)
    return found
