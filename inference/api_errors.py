"""Refusals that Django REST Framework has no exception for."""

from rest_framework import status
from rest_framework.exceptions import APIException


class QueueFull(APIException):
    status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    default_detail = "Too many tasks are pending: submit again in a few seconds."
    default_code = "queue_full"
    wait = 5
