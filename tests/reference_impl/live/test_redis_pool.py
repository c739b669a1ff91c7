"""What redis-py says of a connection whose socket is gone, on the loop of live processes."""

from __future__ import annotations

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from reference_impl.live.loop import run_live
from reference_impl.live.redis_pool import redis_pool
from tests.servers.valkey import shared_valkey_url


def test_a_write_to_a_connection_that_was_reset_is_an_error_of_the_connection() -> None:
    async def main() -> None:
        pool = redis_pool(shared_valkey_url(), max_connections=1)
        connection = await pool.get_connection()
        connection._writer.transport.abort()  # as the loop does when it reads a reset
        with pytest.raises(RedisConnectionError, match="closed"):
            await connection.send_command("PING")
        await connection.send_command("PING")
        assert await connection.read_response() == b"PONG", "the next command connects again"
        await pool.release(connection)
        await pool.disconnect()

    run_live(main())
