-- Who buys much and waits for an answer.
select customer, cents, tickets
from orders_by_customer
join open_tickets using (customer_id)
order by cents desc
