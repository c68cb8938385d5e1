"""Personal data and secrets are masked; what looks alike stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalm.corpus.clean.pii import Pii, mask
from megalm.corpus.clean.pii_find import MASKS
from megalm.corpus.clean.pii_patterns import FINDERS
from tests.corpus.documents import document, text_after

GITHUB = "ghp_" + "a1B2" * 9
AWS = "AKIA" + "IOSFODNN7EXAMPLE"
KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\nx+y/z==\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Write to anna.o'neil+x@mail.example.co.uk.", "Write to <EMAIL>."),
        ("<bob@example.org>,eve@example.com", "<<EMAIL>>,<EMAIL>"),
        ("Server 8.8.8.8, 151.101.1.69.", "Server <IP>, <IP>."),
        ("at 2001:4860:4860::8888 and 2a00:1450:4001:0812:0000:0000:0000:200e now", "at <IP> and <IP> now"),
        ("Visa 4111 1111 1111 1111, Amex 378282246310005", "Visa <CARD>, Amex <CARD>"),
        ("5500-0000-0000-0004", "<CARD>"),
        ("IBAN DE89 3704 0044 0532 0130 00 please", "IBAN <IBAN> please"),
        ("GB82WEST12345698765432, FR1420041010050500013M02606", "<IBAN>, <IBAN>"),
        ("+49 (30) 1234-5678 or +1 415-555-2671", "<PHONE> or <PHONE>"),
        ("(415) 555-2671, 415-555-2671, 415.555.2671", "<PHONE>, <PHONE>, <PHONE>"),
        ("Tel.: 030 / 1234567, Fax 0301234568", "Tel.: <PHONE>, Fax <PHONE>"),
        ("0049 30 1234567", "<PHONE>"),
        (f"token={GITHUB}", "token=<SECRET>"),
        (f'key = "{AWS}"', 'key = "<SECRET>"'),
        ('aws_secret_access_key = "' + "aB3/" * 10 + '"', 'aws_secret_access_key = "<SECRET>"'),
        (f"a\n{KEY}\nb", "a\n<SECRET>\nb"),
        ("postgres://admin:hunter22@db.example.com/x", "postgres://admin:<SECRET>@db.example.com/x"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N", "<SECRET>"),
    ],
)
def test_personal_data_is_masked(text: str, wanted: str):
    assert text_after(Pii(), text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "icon@2x.png @handle user@localhost a@b @app.route me @ home.example",
        "C:\\x@y and foo@bar..com",
        "192.168.1.1 10.0.0.1 127.0.0.1 172.16.0.1 224.0.0.1 0.0.0.0 255.255.255.255 203.0.113.7",
        "version 1.2.3.4, v8.8.8.8, section 5.6.7.8, 1.2.3.4.5, 300.1.1.1, 1.2.3",
        "12:34:56 std::vector a::b ::1 fe80::1 2001:db8::1 1:2:3:4:5:6:7:8 00:1A:2B:3C:4D:5E",
        "4111 1111 1111 1112 and 1234567812345670 and 0000000000000000",
        "id 41111111111111111111111 x4111111111111111",
        "DE88 3704 0044 0532 0130 00 and XX82WEST12345698765432 and GB82 WEST 1234",
        "2020-01-15 10:30 and 1999/12/31, 01.02.2003",
        "ISBN 978-3-16-148410-0 and 3.141592653589793 and 1,234,567,890",
        "155-555-2671 and 415-155-2671 and 415-555-26712 and 12-415-555-2671x",
        "10000000000 and 1234567890 and 555-2671 and +12",
        "call 911 and phone 7 and fax 2020",
        "ghp_short AKIA1234 sk-learn-is-a-library hf_transfer eyJ.eyJ.x xoxb-1",
        "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----",
        "-----BEGIN RSA PRIVATE KEY----- is how such a file begins",
        "https://user:<password>@host.example and https://user:password@host.example and http://host:8080/a@b",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ],
)
def test_what_looks_alike_stays(text: str):
    assert text_after(Pii(), text) == text


def test_kinds_are_counted_in_the_tally_and_the_metadata():
    step = Pii()
    it = document("a@example.com b@example.com 8.8.8.8")
    assert step.apply(it) is None
    assert it.metadata["pii"] == {"email": 2, "ip": 1} == dict(step.tally.counters)


def test_kinds_can_be_switched_off_and_masks_chosen():
    step = Pii(Pii.Settings(ip=False, masks={"email": "[mail]"}))
    assert text_after(step, "a@example.com 8.8.8.8") == "[mail] 8.8.8.8"


def test_of_overlapping_matches_the_graver_is_masked():
    text = "https://bob:secret99@example.com/x"
    assert text_after(Pii(), text) == "https://bob:<SECRET>@example.com/x"


@given(st.text(alphabet="a1.@:-+ /\n(4", max_size=200))
def test_any_text_keeps_what_is_not_masked(text: str):
    masked, counts = mask(text, list(FINDERS), MASKS)
    assert (masked == text) == (not counts)


@pytest.mark.timeout(60)  # under a second; work that grows with the square of the length would take minutes
@pytest.mark.parametrize(
    "unit",
    ["a", "a@", "a.", "@a.", "1", "1.", "1 ", "1-", "+1", "1:", "ab:", "DE89 ", "tel ", "eyJa.", "://a:b", "a:b@", "(4",
     "secret ", "aws secret=", "-----BEGIN PRIVATE KEY-----", "sk-", "x@a-", "+49 (0) ", "00"],
)  # fmt: skip
def test_hostile_texts_end_soon(unit: str):
    text = unit * (400_000 // len(unit))
    masked, counts = mask(text, list(FINDERS), MASKS)
    assert (masked == text) == (not counts)
