select
    c.id as customer_id,
    c.name as customer,
    count(o.id) as orders,
    coalesce(sum(o.cents), 0)::bigint as cents
from public.customers c
left join public.orders o on o.customer_id = c.id
group by all
