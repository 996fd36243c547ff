select customer_id, count(*) as tickets
from public.tickets
where not is_closed
group by all
