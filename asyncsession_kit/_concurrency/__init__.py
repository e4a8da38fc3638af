"""Paired primitives with one call shape; nothing else imports asyncio or threading.

A name and its twin (``async_x`` and ``x``) do the same for a task and for a thread.  Where a thread
has nothing to do, the twin is a plain call, and says so.
"""

from threading import Lock as Lock
from threading import RLock as RLock

from .common import Cancelled as Cancelled
from .common import Future as Future
from .common import Loop as Loop
from .common import Task as Task
from .common import logger as logger
from .exits import apart as apart
from .exits import async_carry as async_carry
from .exits import async_leave as async_leave
from .exits import async_run_core as async_run_core
from .exits import async_to_its_end as async_to_its_end
from .exits import async_wait_for_exits as async_wait_for_exits
from .exits import carried_for as carried_for
from .exits import carry as carry
from .exits import forget_tasks as forget_tasks
from .exits import is_carried as is_carried
from .exits import note_end as note_end
from .exits import run_core as run_core
from .exits import to_its_end as to_its_end
from .exits import wait_for_exits as wait_for_exits
from .greenlets import respawned as respawned
from .loops import ANYWHERE as ANYWHERE
from .loops import Home as Home
from .loops import async_call_in as async_call_in
from .loops import async_home as async_home
from .loops import async_in_thread as async_in_thread
from .loops import call_in as call_in
from .loops import describe_loop as describe_loop
from .loops import home as home
from .loops import is_lost as is_lost
from .loops import run_outside_loops as run_outside_loops
from .loops import tell_loop as tell_loop
from .shares import AsyncShare as AsyncShare
from .shares import Relay as Relay
from .shares import Share as Share
from .together import AbandonedError as AbandonedError
from .together import async_run_together as async_run_together
from .together import run_together as run_together
from .waits import AsyncWaiter as AsyncWaiter
from .waits import BoundReachedError as BoundReachedError
from .waits import Waiter as Waiter
from .waits import Watch as Watch
from .waits import alarm as alarm
from .waits import async_bound as async_bound
from .waits import async_is_cancelled as async_is_cancelled
from .waits import async_is_done as async_is_done
from .waits import async_pause as async_pause
from .waits import async_was_stopped as async_was_stopped
from .waits import is_cancelled as is_cancelled
from .waits import pause as pause
from .waits import pause_anywhere as pause_anywhere
from .waits import run_beside as run_beside
from .waits import was_stopped as was_stopped
from .who import awaits as awaits
from .who import awaits_thread as awaits_thread
from .who import describe_owner as describe_owner
from .who import describe_task as describe_task
from .who import describe_thread as describe_thread
from .who import is_calling as is_calling
from .who import is_main_thread as is_main_thread
from .who import running_task as running_task
from .who import thread_id as thread_id
