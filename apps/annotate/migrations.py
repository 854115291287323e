"""From the store's older versions to the present one, a step at a time.

A step is SQL that both databases understand. Steps are never changed once released; a new one is added and
``store.VERSION`` counted up. Before the first step an SQLite store is copied beside itself.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, select, update

from apps.annotate.errors import StoreError
from apps.annotate.store import Store, backup, shown
from apps.annotate.tables import VERSION, schema_version

#: version -> what leads from it to the next
STEPS: dict[int, tuple[str, ...]] = {
    # votes tell which words the labeler marked
    1: ("ALTER TABLE events ADD COLUMN marks TEXT",),
}


def bring_up_to_date(store: Store) -> None:
    """Take the steps that are missing, all or none of them. Raises StoreError for a later version."""
    with store.read() as connection:
        found = _version(connection)
    if found > VERSION:
        rule = f"{shown(store.url)}: of version {found}, and this program knows up to {VERSION}"
        raise StoreError(f"{rule}; use a newer program")
    if found == VERSION:
        return
    if store.is_sqlite:
        file = Path(str(store.url.database))
        backup(store, file.with_name(f"{file.name}.v{found}"))

    def migrate(connection: Connection) -> None:
        # another process may have been first
        for version in range(_version(connection), VERSION):
            for statement in STEPS[version]:
                connection.exec_driver_sql(statement)
        connection.execute(update(schema_version).values(version=VERSION))

    store.write(migrate)


def _version(connection: Connection) -> int:
    found = connection.scalar(select(schema_version.c.version))
    if found is None:
        raise StoreError("the store does not say its version; restore a backup")
    return int(found)
