import pytest

from emovllm.addresses import is_loopback


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8000/v1",
        "http://LocalHost./",
        "http://model.localhost/v1",
        "http://127.0.0.1:8000/v1",
        "http://127.8.9.1",
        "http://[::1]:8000/v1",
        "http://0.0.0.0:8000",
    ],
)
def test_addresses_of_this_machine_are_known(url):
    assert is_loopback(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com/v1",
        "http://10.0.0.1",
        "http://localhost.example.com",
        "http://127.0.0.1.example.com",
        "",
    ],
)
def test_other_addresses_are_not(url):
    assert not is_loopback(url)
