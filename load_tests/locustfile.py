"""What Locust loads: ``locust -f load_tests/locustfile.py``. README.md beside it tells how."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path
from typing import Any

import gevent
from grpc.experimental.gevent import init_gevent
from locust import events
from locust.runners import WorkerRunner

sys.path.insert(0, str(Path(__file__).parents[1]))  # Locust knows this folder, but not that it is a package

from load_tests.course import Course
from load_tests.options import add_options, read_settings, read_transports
from load_tests.shapes import SHAPES, Soak, Spike, Step
from load_tests.users import GenerateUser, GrpcUser, InferUser, QueueUser, RestUser, StreamUser

# Locust finds users and shapes among the names in this module.
__all__ = ["GenerateUser", "GrpcUser", "InferUser", "QueueUser", "RestUser", "Soak", "Spike", "Step", "StreamUser"]

_AT_ONCE = 100.0

logger = logging.getLogger(__name__)


def on_init(environment: Any, web_ui: Any, **_: Any) -> None:
    """Locust has read its options, and made the processes that it was told to make."""
    # Without it a call keeps all greenlets of the process from running. Not before a process forks.
    init_gevent()
    options = environment.parsed_options
    try:
        read_settings(options)
        if not isinstance(environment.runner, WorkerRunner):
            _choose_users(environment)
    except ValueError as error:
        logger.error("%s", error)
        sys.exit(1)
    environment.shape_class = SHAPES[options.shape]() if options.shape in SHAPES else None
    if environment.shape_class:
        environment.shape_class.runner = environment.runner
    course = Course(environment)
    events.test_start.add_listener(lambda **_: course.begin())
    events.test_stopping.add_listener(lambda **_: course.finish())
    events.test_stop.add_listener(lambda **_: course.conclude())
    # Ctrl-C: Locust decides how to exit before it stops the test.
    events.quitting.add_listener(lambda **_: environment.runner.stop())
    # Python raises KeyboardInterrupt in whatever greenlet computes at that moment, which may be one that this process
    # needs to end its test; Locust waits for it in the main one, which is this.
    gevent.signal_handler(signal.SIGINT, gevent.kill, gevent.getcurrent(), KeyboardInterrupt)
    # gevent counts --run-time from its last look at the clock, which was before everything was loaded.
    gevent.get_hub().loop.update_now()
    if web_ui:
        web_ui.app.add_url_rule("/slo", "slo", web_ui.auth_required_if_enabled(lambda: course.report().html()))


def _choose_users(environment: Any) -> None:
    """Users of the transports that were named, unless classes were named. Raises ValueError."""
    options = environment.parsed_options
    if not options.user_classes and not options.class_picker:
        named = read_transports(options)
        environment.user_classes = [user for user in environment.user_classes if user.transport in named]
    options.num_users = options.num_users or len(environment.user_classes)
    if options.rate:
        options.spawn_rate = options.spawn_rate or _AT_ONCE
        if options.num_users < len(environment.user_classes):
            logger.warning("%d users are too few for %d transports", options.num_users, len(environment.user_classes))


events.init_command_line_parser.add_listener(add_options)
events.init.add_listener(on_init)
