"""Workers that draw from one account never spend more than its limits together, and can use nearly all of them."""

import multiprocessing
import os
import random
import signal
import time

import pytest

from spark_jobs.models.account import Account, Prices, Purse, Reply, SpendingLimits, Usage


@pytest.fixture
def account(tmp_path):
    return Account(SpendingLimits(num_tokens=10_000), Prices(), tmp_path)


def spend(account, log, seed):
    """Make calls until one is refused: each reserves 300 tokens and takes 50 to 150."""
    purse, dice, used = Purse(account), random.Random(seed), 0  # noqa: S311 - no secret
    most = account.usage(200, 100)
    while (reply := purse.reserve(most)) is not Reply.REFUSED:
        if reply is Reply.LATER:
            time.sleep(0.005)
            continue
        taken = account.usage(dice.randint(50, 100), dice.randint(0, 50))
        time.sleep(0.001)
        purse.settle(most, taken)
        used += taken.num_tokens
    (log / f"{seed}.used").write_text(str(used))


def reserve_and_die(account):
    Purse(account).reserve(account.usage(4000, 0))
    os.kill(os.getpid(), signal.SIGKILL)


def run(*processes):
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def test_processes_together_use_nearly_all_of_a_limit_and_never_more(account, tmp_path):
    fork = multiprocessing.get_context("fork")
    run(*(fork.Process(target=spend, args=(account, tmp_path, seed)) for seed in range(4)))

    used = sum(int(file.read_text()) for file in tmp_path.glob("*.used"))
    assert 9_500 <= used <= 10_000


def test_what_a_killed_process_reserved_counts_as_spent_and_nobody_waits_for_it(account):
    run(multiprocessing.get_context("fork").Process(target=reserve_and_die, args=(account,)))

    purse = account.purse()
    assert purse.reserve(account.usage(6001, 0)) is Reply.REFUSED
    assert purse.reserve(account.usage(6000, 0)) is Reply.GRANTED


def test_a_reservation_waits_while_others_may_return_enough(account):
    one, other = Purse(account), Purse(account)
    assert one.reserve(account.usage(9000, 0)) is Reply.GRANTED
    assert other.reserve(account.usage(2000, 0)) is Reply.LATER
    assert other.reserve(account.usage(10_001, 0)) is Reply.REFUSED
    one.settle(account.usage(9000, 0), account.usage(8500, 0))
    assert other.reserve(account.usage(2000, 0)) is Reply.REFUSED
    assert other.reserve(account.usage(1500, 0)) is Reply.GRANTED


def test_a_call_that_was_never_sent_is_free(tmp_path):
    account = Account(SpendingLimits(num_calls=1), Prices(), tmp_path)
    purse = account.purse()
    assert purse.reserve(account.usage(1, 1)) is Reply.GRANTED
    purse.settle(account.usage(1, 1), Usage())
    assert purse.reserve(account.usage(1, 1)) is Reply.GRANTED


def test_without_limits_nothing_is_written():
    purse = Account().purse()
    assert purse.reserve(Usage(0, 10**9, 10**9, 1e9)) is Reply.GRANTED
    purse.settle(Usage(), Usage())


def test_after_its_folder_is_removed_an_account_grants_nothing(tmp_path):
    folder = tmp_path / "account"
    folder.mkdir()
    purse = Account(SpendingLimits(num_calls=9), Prices(), folder).purse()
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    with pytest.raises(FileNotFoundError):
        purse.reserve(Usage(num_calls=1))
