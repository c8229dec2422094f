"""Pages of models."""

from monitoring.api.pagination import AliasedPagination


class ModelPagination(AliasedPagination):
    """By name."""

    alias = "models"
    ordering = ("name",)

    def check_position(self, position: str) -> None:
        if "\0" in position:  # PostgreSQL refuses to look for one
            raise ValueError(position)
