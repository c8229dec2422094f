"""Rows by plain SQL, for the queries that run most often.

Building a SELECT of thirty columns takes the ORM several times as long as all the rest of reading
the row.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from django.db import connection, models

Row = TypeVar("Row", bound=models.Model)

# Its place in the row, and what makes its value of that of the database.
_Column = tuple[int, Sequence[Callable[..., Any]], Any]


def first_row(
    model: type[Row], statement: str, values: Sequence[Any] | Mapping[str, Any]
) -> Row | None:
    """The first row that it returns, with the columns that it names; others become attributes."""
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        rows = cursor.fetchall()
        if not rows:
            return None
        names, columns, others = _plan(model, tuple(column[0] for column in cursor.description))
    row = rows[0]
    stored = []
    for index, converters, column in columns:
        value = row[index]
        for convert in converters:
            value = convert(value, column, connection)
        stored.append(value)
    found = model.from_db(connection.alias, names, stored)
    for name, index in others:
        setattr(found, name, row[index])
    return found


@cache
def _plan(
    model: type[models.Model], returned: tuple[str, ...]
) -> tuple[list[str], list[_Column], list[tuple[str, int]]]:
    """The names of the fields that are returned, how to read them, and where the others are."""
    fields = [field for field in model._meta.concrete_fields if field.column in returned]
    columns = [field.get_col(model._meta.db_table) for field in fields]
    compiler = model._default_manager.all().query.get_compiler(connection=connection)
    converters = compiler.get_converters(columns)
    known = {field.column for field in fields}
    return (
        [field.attname for field in fields],
        [
            (returned.index(field.column), *converters.get(number, ((), column)))
            for number, (field, column) in enumerate(zip(fields, columns, strict=True))
        ],
        [(name, index) for index, name in enumerate(returned) if name not in known],
    )
