"""How personal data and secrets look, and the checks that tell them from numbers and words that look alike.

No pattern here takes more than linear time: repetitions are bounded, and matches begin at a boundary alone.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

Kind = Literal["secret", "email", "iban", "card", "ip", "phone"]

# Local parts have at most 64 characters, labels 63 (RFC 5321, RFC 1035).
_EMAIL = re.compile(
    r"(?<![\w.+%'-])[A-Za-z0-9_][\w.+%'-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}"
    r"([A-Za-z]{2,24})(?![\w@-])"
)
_IN_URL = re.compile(r"//[^\s/@]*$")  # user and host of an address such as ssh://git@host
_FILE_ENDINGS = frozenset("png jpg jpeg gif svg webp css js json html htm py txt pdf".split())

# Where numbers with separators stand: the costly patterns below look there alone.
_RUN = re.compile(r"[+(]?\d[\d .()/-]{5,}\d")
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")
_IPV6 = re.compile(
    r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:){2,7}(?::|:?[0-9A-Fa-f]{1,4})(?::[0-9A-Fa-f]{1,4}){0,5}(?![\w:])"
)
_TWO_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_VERSION = re.compile(r"(?:\b(?:v|ver|version|release|build|section|chapter)|§)[ .:]{0,2}$", re.IGNORECASE)

_DIGITS = re.compile(r"(?<![\w.+-])(?:\d[ -]?){12,18}\d(?![\w-])")
_IBAN = re.compile(r"[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
# SWIFT's registry of IBAN formats: characters in each country's.
_IBAN_LENGTHS = dict(
    zip(
        "AD AE AL AT AZ BA BE BG BH BI BR BY CH CR CY CZ DE DJ DK DO EE EG ES FI FK FO FR GB GE GI GL GR GT HN HR HU IE IL "
        "IQ IS IT JO KW KZ LB LC LI LT LU LV LY MC MD ME MK MN MR MT MU NI NL NO OM PK PL PS PT QA RO RS RU SA SC SD SE "
        "SI SK SM SO ST SV TL TN TR UA VA VG XK YE".split(),
        map(
            int,
            "24 23 28 20 28 20 16 22 22 27 29 28 21 22 28 24 22 27 18 28 20 29 24 18 18 18 27 22 22 23 18 27 28 28 21 28 "
            "22 23 23 26 27 30 30 20 28 32 21 20 20 21 25 27 24 22 19 20 27 31 30 28 18 15 23 24 28 29 25 29 24 22 33 24 "
            "31 18 24 19 24 27 23 25 28 23 24 26 29 22 24 20 30".split(),
        ),
        strict=True,
    )
)

_PHONE = re.compile(
    r"(?<![\w.,/:+-])(?<!\d )(?:"
    r"\+[1-9]\d{0,3}(?:[ .()/-]{0,2}\d){6,14}"  # international, ITU-T E.164: up to 15 digits
    r"|00[1-9]\d{0,2}(?:[ .()/-]{1,2}\d{1,8}){2,6}"
    r"|(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])[2-9]\d\d[ .-]\d{4}"  # North American Numbering Plan
    r")(?![\w-]|[.,/:]\d)"
)
_CALLED_PHONE = re.compile(r"\(?\d(?:[ .()/-]{0,3}\d){5,14}(?![\w-]|[.,/:]\d)")
_CALL = re.compile(
    r"(?<!\w)(?:tel(?:efon|ephone)?|phone|fon|fax|mobile|mobil|handy|cell|whatsapp|call)"
    r"(?: ?(?:no|number|nr))?[.:]{0,2} ?$",
    re.IGNORECASE,
)

_SECRET = re.compile(
    r"(?<![A-Za-z0-9_])(?:"
    r"(?:AKIA|ASIA)[A-Z0-9]{16}"  # Amazon Web Services
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}"
    r"|glpat-[A-Za-z0-9_-]{20,64}"  # GitLab
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,255}"  # Slack
    r"|AIza[A-Za-z0-9_-]{35}"  # Google
    r"|[rs]k_live_[A-Za-z0-9]{20,255}"  # Stripe
    r"|sk-(?:proj-|ant-[a-z0-9]{2,8}-)?[A-Za-z0-9_-]{32,255}"  # OpenAI, Anthropic
    r"|hf_[A-Za-z]{34}"  # Hugging Face
    r"|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,255}"
    r"|SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}"  # SendGrid
    r"|eyJ[A-Za-z0-9_-]{8,512}\.eyJ[A-Za-z0-9_-]{8,2048}\.[A-Za-z0-9_-]{16,1024}"  # JSON Web Tokens
    r")(?![A-Za-z0-9_])"
)
_SECRET_HINTS = "AKIA ASIA ghp_ gho_ ghu_ ghs_ ghr_ github_pat_ glpat- xox AIza k_live_ sk- hf_ npm_ pypi- SG. eyJ".split()
_AWS_SECRET = re.compile(
    r"aws.{0,20}secret.{0,20}?[\"' :=]{1,6}([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])", re.IGNORECASE
)
_URL_PASSWORD = re.compile(r"(?<=://)[\w.%+-]{1,64}:([^\s:/@\"'<>]{3,128})@(?=[\w.-]{1,255})")
_PLACEHOLDER = re.compile(r"^(?:[<${\[*].*|pass(?:word|wd)?|secret|x+|\.+)$", re.IGNORECASE)
_KEY_BEGIN = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_KEY_CHARACTERS = 20_000


class Match(NamedTuple):
    """A place in a text, [begin, end), that holds something of `kind`."""

    begin: int
    end: int
    kind: Kind


def find_emails(text: str) -> list[Match]:
    """E-mail addresses; `icon@2x.png` is none."""
    if "@" not in text:
        return []
    return [
        Match(m.start(), m.end(), "email")
        for m in _EMAIL.finditer(text)
        if m[1].lower() not in _FILE_ENDINGS
        and ".." not in m[0]
        and ".@" not in m[0]
        and not _IN_URL.search(text[max(0, m.start() - 80) : m.start()])
    ]


def find_ips(text: str) -> list[Match]:
    """Public IP addresses of both versions; private, local and reserved ones and versions of programs are none."""
    found = [
        Match(m.start(), m.end(), "ip")
        for m in _in_runs(_IPV4, text)
        if is_public(m[0]) and not _VERSION.search(text[max(0, m.start() - 12) : m.start()])
    ]
    if _TWO_COLONS.search(text):
        found += [Match(m.start(), m.end(), "ip") for m in _IPV6.finditer(text) if is_public(m[0])]
    return found


def find_cards(text: str) -> list[Match]:
    """Numbers of payment cards: digits of a known issuer whose Luhn sum is right."""
    return [Match(m.start(), m.end(), "card") for m in _in_runs(_DIGITS, text) if is_card(m[0])]


def find_ibans(text: str) -> list[Match]:
    """International bank account numbers with the right length and remainder."""
    found = []
    for m in _IBAN.finditer(text):
        length = iban_length(m[0])
        if length and not text[m.start() - 1 : m.start()].isalnum():
            found.append(Match(m.start(), m.start() + length, "iban"))
    return found


def find_phones(text: str) -> list[Match]:
    """Phone numbers in international or North American form, or that the word before calls so."""
    found = [Match(m.start(), m.end(), "phone") for m in _in_runs(_PHONE, text) if _enough_digits(m[0])]
    for run in _runs(text):
        if _CALL.search(text[max(0, run.start() - 24) : run.start()]):
            number = _CALLED_PHONE.match(text, run.start(), run.end() + 2)
            if number:
                found.append(Match(number.start(), number.end(), "phone"))
    return found


def find_secrets(text: str) -> list[Match]:
    """Keys of well-known shapes, private keys, passwords in addresses."""
    found = []
    if any(hint in text for hint in _SECRET_HINTS):
        found += [Match(m.start(), m.end(), "secret") for m in _SECRET.finditer(text)]
    if "secret" in text or "SECRET" in text:
        found += [Match(m.start(1), m.end(1), "secret") for m in _AWS_SECRET.finditer(text)]
    if "://" in text:
        found += [
            Match(m.start(1), m.end(1), "secret")
            for m in _URL_PASSWORD.finditer(text)
            if not _PLACEHOLDER.match(m[1])
        ]
    return found + _private_keys(text)


FINDERS: dict[Kind, Callable[[str], list[Match]]] = {
    "secret": find_secrets,
    "email": find_emails,
    "iban": find_ibans,
    "card": find_cards,
    "ip": find_ips,
    "phone": find_phones,
}
"""In this order: where two overlap, the earlier kind is masked."""


def is_public(ip: str) -> bool:
    """Whether `ip` is an address that the Internet at large can reach."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return False
    if address.version == 6 and int(address) >> 125 != 1:  # 2000::/3 is all that was ever given out
        return False
    return address.is_global and not address.is_multicast


def is_card(number: str) -> bool:
    """Whether the digits are those of a card: issuer's prefix, length and Luhn sum (ISO/IEC 7812)."""
    digits = number.replace(" ", "").replace("-", "")
    if not _issued(digits):
        return False
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def iban_length(text: str) -> int:
    """How many characters of `text` are an IBAN, spaces included; 0 if its begin is none (ISO 13616)."""
    wanted = _IBAN_LENGTHS.get(text[:2])
    place = count = 0
    while wanted and count < wanted and place < len(text):
        count += text[place] != " "
        place += 1
    compact = text[:place].replace(" ", "")
    if not wanted or len(compact) != wanted:
        return 0
    number = "".join(str(int(character, 36)) for character in compact[4:] + compact[:4])
    return place if int(number) % 97 == 1 else 0


def _issued(digits: str) -> bool:
    length, two, four = len(digits), int(digits[:2]), int(digits[:4])
    if digits[0] == "4":
        return length in (13, 16, 19)
    if 51 <= two <= 55 or 2221 <= four <= 2720:
        return length == 16
    if two in (34, 37):
        return length == 15
    if four == 6011 or two == 65 or 644 <= four // 10 <= 649 or 3528 <= four <= 3589 or two == 62:
        return 16 <= length <= 19
    return (two in (36, 38, 39) or 300 <= four // 10 <= 305) and 14 <= length <= 19


@lru_cache(maxsize=1)
def _runs(text: str) -> list[re.Match[str]]:
    return list(_RUN.finditer(text))


def _in_runs(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    for run in _runs(text):
        yield from pattern.finditer(text, run.start(), min(len(text), run.end() + 2))


def _enough_digits(number: str) -> bool:
    return 8 <= sum(character.isdigit() for character in number) <= 15


def _private_keys(text: str) -> list[Match]:
    found = []
    end = 0
    for m in _KEY_BEGIN.finditer(text):
        if m.start() < end:
            continue
        closing = m[0].replace("BEGIN", "END")
        place = text.find(closing, m.end(), m.end() + _KEY_CHARACTERS)
        if place >= 0:
            end = place + len(closing)
            found.append(Match(m.start(), end, "secret"))
    return found
