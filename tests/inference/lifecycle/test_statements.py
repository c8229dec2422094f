"""Statements that are compiled once and run with other values."""

import pytest
from django.db.models import F, FloatField, IntegerField
from django.db.models.functions import Now
from django.db.utils import IntegrityError
from pytest_django import DjangoAssertNumQueries

from inference.lifecycle.statements import (
    Compiled,
    Parameter,
    Statement,
    compile_insert,
    compile_select,
    compile_update,
)
from inference.models import RegisteredModel

pytestmark = pytest.mark.django_db


def compile_rename() -> Compiled:
    size = Parameter("size", IntegerField())
    return compile_update(
        RegisteredModel.objects.filter(name=Parameter("old"), provider="echo"),
        name=Parameter("new"),
        size_bytes=F("size_bytes") + size,
        updated_at=Now(),
    )


def test_update_changes_the_rows_it_names() -> None:
    for name, provider in (("a", "echo"), ("b", "echo"), ("c", "local")):
        RegisteredModel.objects.create(name=name, provider=provider, size_bytes=10)
    statement = Statement(compile_rename)
    assert statement.run(old="a", new="x", size=1) == 1
    assert statement.run(old="b", new="y", size=2) == 1
    assert statement.run(old="c", new="z", size=3) == 0
    assert statement.run(old="gone", new="z", size=3) == 0
    rows = RegisteredModel.objects.order_by("name").values_list("name", "size_bytes")
    assert list(rows) == [("c", 10), ("x", 11), ("y", 12)]


def test_statement_is_compiled_once(
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    num_compiled = 0

    def compile_it() -> Compiled:
        nonlocal num_compiled
        num_compiled += 1
        return compile_rename()

    statement = Statement(compile_it)
    assert num_compiled == 0
    with django_assert_num_queries(3):
        for _ in range(3):
            statement.run(old="a", new="b", size=0)
    assert num_compiled == 1


def test_insert_adds_a_row() -> None:
    row = RegisteredModel.objects.create(name="template", provider="echo", config={"a": 1})
    row.name = Parameter("name")
    row.size_bytes = Parameter("size", FloatField())
    statement = Statement(lambda: compile_insert(row))
    assert statement.run(name="one", size=5) == 1
    made = RegisteredModel.objects.get(name="one")
    assert (made.size_bytes, made.config, made.provider) == (5, {"a": 1}, "echo")
    with pytest.raises(IntegrityError):
        statement.run(name="one", size=6)


def test_value_is_data_and_never_sql() -> None:
    RegisteredModel.objects.create(name="a", provider="echo")
    statement = Statement(compile_rename)
    nasty = "x' OR '1'='1"
    assert statement.run(old=nasty, new="b", size=0) == 0
    assert statement.run(old="a", new=nasty, size=0) == 1
    assert RegisteredModel.objects.get().name == nasty


def test_missing_value_is_an_error() -> None:
    with pytest.raises(KeyError):
        Statement(compile_rename).run(old="a")


def test_select_gives_rows_and_the_first_of_them() -> None:
    for name, provider in (("a", "echo"), ("b", "echo"), ("c", "local")):
        RegisteredModel.objects.create(name=name, provider=provider)
    of_provider = RegisteredModel.objects.filter(provider=Parameter("provider"))
    names = of_provider.order_by("name").values_list("name")
    statement = Statement(lambda: compile_select(names))
    assert statement.rows(provider="echo") == [("a",), ("b",)]
    assert statement.first_row(provider="local") == ("c",)
    assert statement.first_row(provider="none") is None
