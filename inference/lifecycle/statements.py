"""Statements of the hot path: built by the ORM once, then run again with other values.

Building an UPDATE with its conditions takes the ORM several times as long as running it takes the
database. A task's claim and its end are built from the same querysets as everything else, but once.
"""

from collections.abc import Callable
from typing import Any

from django.db import connection, models
from django.db.models.sql import InsertQuery, UpdateQuery

Compiled = tuple[str, tuple[Any, ...]]


class Parameter(models.Expression):
    """A place in a statement for a value that each run names anew."""

    def __init__(self, name: str, output_field: models.Field[Any, Any] | None = None) -> None:
        super().__init__(output_field=output_field or models.CharField())
        self.name = name

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, tuple[Any, ...]]:
        return "%s", (self,)


class Statement:
    """A statement with Parameters, compiled when it first runs."""

    def __init__(self, compile_it: Callable[[], Compiled]) -> None:
        self._compile_it = compile_it
        self._compiled: Compiled | None = None

    def run(self, **values: Any) -> int:
        """Execute with the parameters' values, as the database takes them; the rows changed."""
        with connection.cursor() as cursor:
            cursor.execute(*self._with(values))
            return int(cursor.rowcount)

    def rows(self, **values: Any) -> list[tuple[Any, ...]]:
        """Execute a SELECT; its rows as the database gives them."""
        with connection.cursor() as cursor:
            cursor.execute(*self._with(values))
            return list(cursor.fetchall())

    def first_row(self, **values: Any) -> tuple[Any, ...] | None:
        """The first row of a SELECT; None without rows."""
        return next(iter(self.rows(**values)), None)

    def _with(self, values: dict[str, Any]) -> tuple[str, list[Any]]:
        if self._compiled is None:
            self._compiled = self._compile_it()
        sql, params = self._compiled
        return sql, [values[p.name] if isinstance(p, Parameter) else p for p in params]


def compile_update(queryset: models.QuerySet[Any], **values: Any) -> Compiled:
    """`queryset.update(**values)`, not executed."""
    query: Any = queryset.query.chain(UpdateQuery)
    query.add_update_values(values)
    sql, params = query.get_compiler(connection=connection).as_sql()
    return sql, tuple(params)


def compile_select(queryset: models.QuerySet[Any, Any]) -> Compiled:
    """The queryset's SELECT, not executed."""
    sql, params = queryset.query.get_compiler(connection=connection).as_sql()
    return sql, tuple(params)


def column_values(row: models.Model) -> dict[str, Any]:
    """The row's values by attribute, as the database takes them."""
    return {
        field.attname: field.get_db_prep_save(getattr(row, field.attname), connection)
        for field in row._meta.concrete_fields
    }


def compile_insert(row: models.Model) -> Compiled:
    """`row.save(force_insert=True)`, not executed."""
    fields = [f for f in row._meta.concrete_fields if not isinstance(f, models.AutoField)]
    query = InsertQuery(type(row))
    query.insert_values(fields, [row])
    [(sql, params)] = query.get_compiler(connection=connection).as_sql()
    return sql, tuple(params)
