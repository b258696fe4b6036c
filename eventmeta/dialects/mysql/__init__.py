"""MySQL and MariaDB."""

from eventmeta.dialects.mysql.running import MySQL

__all__ = ["MySQL"]
